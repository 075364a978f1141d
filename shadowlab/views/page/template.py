"""What every page is made with: its environment, styles and script, and the policy that keeps it from any network."""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from diagnostics import nearby
from diagnostics.files import read_text
from shadowlab.views.page import wording

_ASSETS = Path(__file__).with_name("assets")


def page_environment() -> Environment:
    """Templates of the package; what they are given is escaped, and what they are not given is an error."""
    made = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"plain": wording.plain, "nearby": nearby, "number": wording.number, "prose": wording.prose}
    return made


def style_and_script(*more: str) -> tuple[str, str]:
    """The style sheet, with the rules of further files behind it, and the script."""
    styles = [read_text(_ASSETS / name) for name in ("report.css", *more)]
    return "".join(styles), read_text(_ASSETS / "report.js")


def policy_hash(text: str) -> str:
    """What the Content-Security-Policy knows the one permitted style or script by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"
