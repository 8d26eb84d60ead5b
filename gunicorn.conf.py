"""How gunicorn serves app.py; options on its command line win."""

import app

bind = f"localhost:{app.read_settings(app.environment())['PORT']}"
control_socket_disable = True
threads = 16
