"""The one form in which an impossible setting is refused."""


def check(holds: bool, key: str, given: object, allowed: str) -> None:
    """Raise ValueError naming the key, what was given and what is allowed, unless `holds`."""
    if not holds:
        raise ValueError(f"{key}={given}: must be {allowed}")
