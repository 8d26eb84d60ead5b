"""How gunicorn serves app.py; options on its command line win."""

import os

from dotenv import dotenv_values

bind = f"localhost:{os.environ.get('PORT') or dotenv_values('.env').get('PORT') or 4242}"
control_socket_disable = True
threads = 16
