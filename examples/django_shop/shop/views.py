"""The shop's HTTP endpoint."""

import json

from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from shop.models import Voucher
from shop.users import create_user


@csrf_exempt
@require_POST
def sign_up(request: HttpRequest) -> JsonResponse:
    """Create a user from a JSON object with `email` and perhaps `voucher`."""
    fields = json.loads(request.body)
    try:
        user = create_user(fields["email"], fields.get("voucher"))
    except Voucher.DoesNotExist:
        return JsonResponse({"error": "This voucher cannot be redeemed."}, status=422)
    return JsonResponse({"id": user.id}, status=201)
