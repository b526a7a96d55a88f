"""What the command line does with wrong input."""


def failed(result, *words):
    """The call ended as wrong input does: one line that holds the words."""
    code, printed, err = result
    assert (code, printed) == (2, "")
    assert err.startswith("microstill: ") and len(err.splitlines()) == 1
    for word in words:
        assert word in err
