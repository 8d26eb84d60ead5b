"""How gunicorn serves app.py; options on its command line win."""

import settings

bind = f"localhost:{settings.read_settings(settings.environment())['PORT']}"
control_socket_disable = True
threads = 16
