"""One endpoint, and the admin with the outbox's pages."""

from django.contrib import admin
from django.urls import path

from shop.views import sign_up

urlpatterns = [path("users/", sign_up), path("admin/", admin.site.urls)]
