"""Secrets that lie in files: `OUTBOX_…_FILE` names one where `OUTBOX_…` would hold the secret itself.

Docker, Kubernetes and systemd hand secrets out as files, which no child process inherits and no list of processes
shows. Invariant: a secret has one source, and no message has a part of it.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

#: What a variable's name ends with that names a file.
SUFFIX = "_FILE"


class SecretFiles(PydanticBaseSettingsSource):
    """The secrets of a settings class whose files the environment names."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[str | None, str, bool]:
        """Return a secret from its file, and None for what is no secret or has no file."""
        variable = f"{self.config['env_prefix']}{field_name}".upper()
        is_filed = is_secret(field) and is_in_file(variable)
        return read_secret(os.environ, variable) if is_filed else None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the secrets by field; raises ValueError that says what is wrong with each file that has none."""
        found, problems = {}, []
        for name, field in self.settings_cls.model_fields.items():
            try:
                found[name] = self.get_field_value(field, name)[0]
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("; ".join(problems))
        return {name: secret for name, secret in found.items() if secret is not None}


def is_secret(field: FieldInfo) -> bool:
    """Tell whether a setting is one that no message shows."""
    return SecretStr in (field.annotation, *get_args(field.annotation))


def is_in_file(variable: str) -> bool:
    """Tell whether the environment of this process names a file for the secret of *variable*."""
    return bool(os.environ.get(variable + SUFFIX))


def read_secret(environment: Mapping[str, str], variable: str) -> str | None:
    """Return the secret that *variable* holds or whose file `<variable>_FILE` names; None where both are empty.

    Raises ValueError with one sentence when both are set, or the file has no secret. Blanks and line breaks around it
    are none of the secret, nor is the mark (BOM) that editors of Windows begin a file with.
    """
    held, path = environment.get(variable) or None, environment.get(variable + SUFFIX)
    if not path:
        return held
    if held is not None:
        raise ValueError(f"{variable} and {variable}{SUFFIX} are both set: unset one of them")
    return _content(path, variable + SUFFIX)


def _content(path: str, variable: str) -> str:
    if "://" in path:
        # Shown, it would be the secret.
        raise ValueError(f"{variable} is a URL itself: write it into a file, and the path of the file here")
    where = f"{variable} names {path}, which"
    try:
        # Asked before it is opened: a pipe would keep the process waiting.
        if not Path(path).is_file():
            raise ValueError(f"{where} is no file, or not there")
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        # Its words have the bytes.
        raise ValueError(f"{where} is not text in UTF-8") from None
    except OSError as error:
        raise ValueError(f"{where} cannot be read ({error.strerror})") from None
    secret = text.strip()
    if not secret:
        raise ValueError(f"{where} is empty")
    if len(secret.splitlines()) > 1:
        raise ValueError(f"{where} has more than one line")
    return secret
