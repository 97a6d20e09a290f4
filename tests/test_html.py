"""Claims about how objects look: one short line as text, well-formed and escaped HTML in a notebook."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest

import sciddiff as sd
from sciddiff.bench import Problem
from sciddiff.html import card

SPACE = sd.Space({"time": np.array(["2001-01", "2001-02", "2001-03"], "M8[M]"), "site": 2}, {"<t>": "K"})
PRIOR = sd.GaussianPrior(SPACE, sd.covariance.white((3, 2)))
SENSORS = sd.operators.Points.at_indices(SPACE, [[0, 1], [2, 0]])
DOUBLED = SENSORS @ sd.operators.from_torch(lambda x: 2 * x, SPACE, SPACE, linear=True)
ONE = PRIOR.given([1.0, 2.0], SENSORS, sd.noise.Gaussian(0.1))
TWO = ONE.given([1.0, np.nan], DOUBLED, sd.noise.Gaussian(0.1), missing="mask")
CASES = PRIOR.given(np.zeros((5, 2)), SENSORS, sd.noise.Gaussian(0.1), batch_dim="case")
STATE = SPACE.dataset(np.zeros((3, 2)))
PROBLEM = Problem("a<b", "Less", PRIOR, SENSORS, sd.noise.Gaussian(0.1), STATE, STATE, {"mean": STATE})
SHOWN = {
    "space": SPACE,
    "prior": PRIOR,
    "operator": DOUBLED,
    "posterior": ONE,
    "two observations": TWO,
    "cases": CASES,
    "problem": PROBLEM,
}
TOLD = {
    **SHOWN,
    "covariance": PRIOR.reference,
    "noise": sd.noise.StudentT(4, 0.1),
    "method": sd.MMPS(),
    "solver": sd.solvers.Adaptive(),
}


class Tags(HTMLParser):
    """The text of a page whose tags nest and close, and the tags themselves."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], set(), ""

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(page):
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert not tags.open
    return tags


@pytest.mark.parametrize("name", TOLD)
def test_a_repr_is_one_short_line_without_addresses_or_private_names(name):
    line = repr(TOLD[name])
    assert len(line) < 250 and "\n" not in line
    assert " at 0x" not in line and "(_" not in line and not line.startswith("_")


@pytest.mark.parametrize("name", SHOWN)
def test_html_is_well_formed_and_holds_no_tag_from_a_label(name):
    page = parsed(SHOWN[name]._repr_html_())
    assert page.seen <= {"div", "strong", "table", "tr", "th", "td", "details", "summary"}
    assert {"space": "<t>", "problem": "a<b"}.get(name, "") in page.text


def test_a_posterior_says_what_it_is_made_of():
    assert repr(ONE) == (
        "Posterior(GaussianPrior on Space(<t> [K] on (time: 3, site: 2)) given 2 values by Points with Gaussian(0.1))"
    )
    assert "and 1 of 2 values by Points @ LinearTorch with" in repr(TWO)
    assert repr(CASES).endswith("given 10 values by Points with Gaussian(0.1), 5 cases along 'case')")
    page = parsed(TWO._repr_html_()).text
    assert "observation 1" in page and "operator 2" in page and "GaussianPrior" in page


def test_a_part_unfolds_where_it_has_html_and_is_text_where_not():
    page = card("Pair", {"first": "<b>", "second": SPACE, "third": 3})
    assert page.count("<details>") == 1 and "&lt;b&gt;" in page and "<td" in page and ">3<" in page
