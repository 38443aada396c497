"""The shop's own tables; its users are Django's."""

from django.contrib.auth.models import User
from django.db import models


class Voucher(models.Model):
    """A voucher that one user may redeem when signing up."""

    code = models.CharField(max_length=20, unique=True)
    redeemed_by = models.ForeignKey(User, models.PROTECT, null=True, blank=True)

    def __str__(self) -> str:
        return self.code
