"""Settings of the shop. What is for Sluice is LOGGING, and the middleware in wsgi.py."""

import os
import secrets

SECRET_KEY = secrets.token_hex()  # no sessions: another one with each start is enough
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {
        "sluice": {
            "class": "sluice_client.SluiceHandler",
            "url": os.environ.get("SLUICE_URL", "http://localhost:8080"),
            "source": "shop",
            "api_key": os.environ.get("SLUICE_API_KEY") or None,
        },
        "console": {"class": "logging.StreamHandler"},
    },
    "root": {"level": "INFO", "handlers": ["sluice", "console"]},
}
