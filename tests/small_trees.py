"""A tree small enough to go through all that can happen on it, that, and a method played on a tree."""

from collections import defaultdict
from itertools import combinations, product

import numpy as np

from bonlib.inference.trees import Tree

T2 = Tree(
    probs=[0.5, 0.3, 0.2],
    partial=[0, 1, 1],
    children=[[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]],
    rewards=[[0, 1, 2], [1, 2, 3], [0, 2, 2]],
)


def enumerated(tree, n, survivors, ties="exact", children=1):
    """The law of the best of `children` ends of each of the best `survivors` of n beginnings, case by case."""
    law = np.zeros(tree.children.shape)
    for beginnings, chance in counted(_survivors(tree, n, survivors, ties)).items():
        parents = np.repeat(beginnings, children)
        for ends in product(range(tree.children.shape[1]), repeat=len(parents)):
            best = tree.rewards[parents, ends].argmax()
            law[parents[best], ends[best]] += chance * tree.children[parents, ends].prod()
    return law.ravel()


def counted(cases):
    """The chances of equal cases, summed."""
    total = defaultdict(float)
    for case, chance in cases:
        total[tuple(case)] += chance
    return total


def _survivors(tree, n, survivors, ties):
    """Which beginnings go on, in the order in which they were drawn, and how likely."""
    for drawn in product(range(len(tree.probs)), repeat=n):
        drawn, chance = np.array(drawn), tree.probs[list(drawn)].prod()
        scores = tree.partial[drawn]
        cutoff = np.sort(scores)[n - survivors]
        above, tied = np.flatnonzero(scores > cutoff), np.flatnonzero(scores == cutoff)
        ways = list(combinations(tied, survivors - len(above))) if ties == "exact" else [tuple(tied)]
        for way in ways:
            yield drawn[sorted([*above, *way])], chance / len(ways)


def played(rule, tree, times, seed):
    """How often a method keeps each whole response of a tree, shape (A · C,)."""
    generator = np.random.default_rng(seed)
    drawn = generator.choice(len(tree.probs), p=tree.probs, size=(times, rule.n))
    scores = tree.partial[drawn]
    on = rule.go_on(scores, np.zeros_like(scores), generator)
    parents, before = np.take_along_axis(drawn, on, axis=1), np.take_along_axis(scores, on, axis=1)
    ends = (generator.random(parents.shape)[..., None] > np.cumsum(tree.children, axis=1)[parents]).sum(axis=-1)
    kept = rule.pick(tree.rewards[parents, ends], before, generator)[:, None]
    places = np.take_along_axis(parents * tree.children.shape[1] + ends, kept, axis=1)[:, 0]
    return np.bincount(places, minlength=tree.children.size)


def by_reward(law, tree=T2):
    """The chance of each different reward, ascending."""
    _, level = np.unique(tree.outcomes.rewards, return_inverse=True)
    return np.bincount(level, weights=law)
