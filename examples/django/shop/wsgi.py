"""The WSGI application, for runserver, Gunicorn and others."""

import os

from django.core.wsgi import get_wsgi_application

from sluice_client.wsgi import WsgiMiddleware

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
# Each event of a request has its requestId and correlationId.
application = WsgiMiddleware(get_wsgi_application())
