"""The names of schemes: a section of the recipe and a row of the table for each, mistakes in one line."""

from typing import get_args

import pytest

from export.errors import InputError
from pipeline import recipe
from pipeline.schemes import SCHEMES


def test_every_section_has_a_scheme():
    sections = get_args(get_args(recipe.Scheme)[0])
    assert [get_args(section.model_fields["name"].annotation)[0] for section in sections] == list(SCHEMES)


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (
            '{ name = "mutal", peers = ["resnet8"] }',
            "distil.scheme: unknown name 'mutal'; did you mean 'mutual'?",
        ),
        ('{ name = "mutual", peer = ["resnet8"] }', "'distil.scheme.mutual.peer'; did you mean 'peers'?"),
        ('{ name = "mutual" }', "'distil.scheme.mutual.peers' is missing"),
        ("{ peers = [] }", "distil.scheme: write it with its name, { name = ... }"),
        ('"one"', "distil.scheme: write it with its name, { name = ... }"),
    ],
)
def test_mistakes_are_named(open_scheme, scheme, message):
    with pytest.raises(InputError) as raised:
        open_scheme(scheme)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
