"""What the encodings of a plan owe each other. Training moves scales, and keeps this by construction."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit import arithmetic
from isobit.encodings.encoding import Encoding
from isobit.graph.sites import Site, site_key, site_of


@dataclass(frozen=True)
class Relations:
    """`products`: biases, whose scale is that of an input times that of a weight, and the sites of these two.

    `ties`: sites that have the encoding of another, and that one. `fixed`: sites whose scale is no matter of the data.
    """

    products: Mapping[Site, tuple[Site, Site]] = field(default_factory=dict)
    ties: Mapping[Site, Site] = field(default_factory=dict)
    fixed: frozenset[Site] = frozenset()

    def touch(self, sites: Collection[Site]) -> bool:
        """Whether one of these sites has a relation to another."""
        pairs = (*((site, *factors) for site, factors in self.products.items()), *self.ties.items())
        return any(site in sites for related in pairs for site in related)

    def that_hold(self, encodings: Mapping[Site, Encoding]) -> Relations:
        """The relations that these encodings have, between sites that have one."""
        products = {
            site: (source, weight)
            for site, (source, weight) in self.products.items()
            if encodings.keys() >= {site, source, weight}
            and _is_product(encodings[site], encodings[source], encodings[weight])
        }
        ties = {
            site: leader
            for site, leader in self.ties.items()
            if encodings.keys() >= {site, leader} and encodings[site] == encodings[leader]
        }
        return Relations(products, ties, self.fixed & encodings.keys())

    def to_record(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "products": [[list(site_key(s)), *(list(site_key(f)) for f in both)] for s, both in self.products.items()],
            "ties": [[list(site_key(site)), list(site_key(leader))] for site, leader in self.ties.items()],
            "fixed": [list(site_key(site)) for site in sorted(self.fixed, key=site_key)],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Relations:
        """The inverse of `to_record`."""
        products = {site_of(*s): (site_of(*source), site_of(*weight)) for s, source, weight in record["products"]}
        ties = {site_of(*site): site_of(*leader) for site, leader in record["ties"]}
        return cls(products, ties, frozenset(site_of(*site) for site in record["fixed"]))


def _is_product(bias: Encoding, source: Encoding, weight: Encoding) -> bool:
    """Whether the scale of a bias is the product; an input with a scale for each of its channels has none."""
    return source.scale.ndim == 0 and np.array_equal(product_scale(source, weight), bias.scale)


def product_scale(source: Encoding, weight: Encoding) -> NDArray[np.float32]:
    """The scale of a bias, of the shape of the weight's: one step of the accumulator of an integer layer."""
    return np.asarray(np.maximum(source.scale * weight.scale, np.float32(arithmetic.SMALLEST_SCALE)))
