"""Signing up: the user, the event and the voucher are committed together or not at all."""

from django.contrib.auth.models import User
from django.db import transaction

from outbox_pipeline.django import publish_event
from shop.events import UserCreated
from shop.models import Voucher


@transaction.atomic
def create_user(email: str, voucher_code: str | None = None) -> User:
    """Create a user and redeem the voucher. Raises Voucher.DoesNotExist when it cannot be redeemed."""
    user = User.objects.create_user(username=email, email=email)
    publish_event(UserCreated(user_id=user.id, email=email))
    if voucher_code is not None:
        voucher = Voucher.objects.select_for_update().get(code=voucher_code, redeemed_by=None)
        voucher.redeemed_by = user
        voucher.save()
    return user
