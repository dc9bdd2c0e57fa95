"""Print what CloudFormation makes of a SAM template, as JSON.

`.venv/sam/bin/python infra/sam/translate.py template.yaml NAME=VALUE …` runs in the SAM CLI's environment,
with the translator that `sam validate` has. It needs no account. Parameters without a default are arguments.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# These are not in our environment, whose pydantic is newer than theirs.
from samcli.lib.translate.sam_template_validator import (  # type: ignore[import-not-found]
    SamTemplateValidator,
)
from samcli.yamlhelper import yaml_parse  # type: ignore[import-not-found]

REGION = "us-east-1"


class _NoManagedPolicies:
    """Our template names no AWS policy by its short name, which is all that the list would be for."""

    def load(self) -> dict[str, str]:
        return {}


def translate(template: Path, parameters: dict[str, str]) -> dict[str, Any]:
    """Return the template without its macro. Raises InvalidSamDocumentException."""
    validator = SamTemplateValidator(
        yaml_parse(template.read_text(encoding="utf-8")),
        _NoManagedPolicies(),
        region=REGION,
        parameter_overrides=parameters,
    )
    translated: dict[str, Any] = yaml_parse(validator.get_translated_template_if_valid())
    return translated


if __name__ == "__main__":
    path, *overrides = sys.argv[1:]
    json.dump(translate(Path(path), dict(each.split("=", 1) for each in overrides)), sys.stdout)
