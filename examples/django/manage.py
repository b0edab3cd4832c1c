"""Django's command line for the shop: `python manage.py runserver --noreload 8002`."""

import os
import sys

from django.core.management import execute_from_command_line

from sluice_client import exit_on_sigterm

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
    exit_on_sigterm()  # the development server has no handler of its own, and would end without sending its events
    execute_from_command_line(sys.argv)
