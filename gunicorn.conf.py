"""How gunicorn serves app.py; options on its command line win."""

import os
from pathlib import Path

from dotenv import dotenv_values

settings = {**dotenv_values(Path(__file__).with_name(".env")), **os.environ}
bind = f"localhost:{settings.get('PORT') or 4242}"
control_socket_disable = True
threads = 16
