"""What of a URL may be printed."""

from __future__ import annotations

import re

USERINFO = re.compile(r"(?<=://)[^/\s]*@")  # RFC 3986, section 3.2.1; to the last `@`, for some passwords hold one as it is


def without_userinfo(text: str) -> str:
    """URLs without their users and passwords, wherever they stand in a text.

    >>> without_userinfo("sftp://me:secret@files.example/models is missing")
    'sftp://files.example/models is missing'
    """
    return USERINFO.sub("", text)
