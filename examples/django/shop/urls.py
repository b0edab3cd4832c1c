"""The pages of the shop."""

import logging

from django.http import HttpRequest, JsonResponse
from django.urls import path

logger = logging.getLogger("shop")
STOCK = {17: 3, 18: 0}


def article(_: HttpRequest, number: int) -> JsonResponse:
    """How many of an article there are."""
    if number not in STOCK:
        logger.warning("there is no article %d", number, extra={"article": number})
        return JsonResponse({"detail": f"there is no article {number}"}, status=404)
    logger.info("article %d was looked at", number, extra={"article": number})
    return JsonResponse({"article": number, "stock": STOCK[number]})


def order(_: HttpRequest, number: int) -> JsonResponse:
    """Order one. With an article that is sold out, this fails: Django's own record has the stack trace."""
    share = 1 / STOCK[number]
    logger.info("article %d was ordered", number, extra={"article": number, "share": share})
    return JsonResponse({"article": number}, status=201)


urlpatterns = [path("articles/<int:number>", article), path("articles/<int:number>/orders", order)]
