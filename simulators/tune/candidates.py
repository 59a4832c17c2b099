"""What is tried: ways to explore with a discovery share each, and the grid that they are made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import msgspec

from bandit.exploration import Epsilon, Exploration, Greedy, Softmax, SquareCB, VwExplorer
from bandit.explorer import parse_explorer_arguments
from bandit.rules import Discovery, Rule

Kind = Literal["epsilon", "softmax", "squarecb"]

# What simulated services call their explorer; a name on a report needs none.
_EXPLORER = "explorer"
_SHORT = {"uniform_share": "uniform", "temperature": "t", "shortlist": "top"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to explore.

    Attributes:
        exploration: The policy of a slot.
        discovery_share: Share of the slots that is reserved for discovery.
        explorer: VW's arguments of the explorer that `exploration` asks, for simulated services; empty without one.
    """

    exploration: Exploration
    discovery_share: float = 0.0
    explorer: str = ""

    @property
    def rate(self) -> float | None:
        """Return the declared rate, None where it follows from the scores."""
        return self.exploration.explore_rate

    @property
    def name(self) -> str:
        """Return a short name that tells it from every other one: kind, then what is not the kind's default.

        >>> Candidate(Epsilon(rate=0.2, shortlist=20), 0.1).name
        'epsilon 0.2, top 20, discovery 0.1'
        >>> vw_candidate("--cb_explore_adf --bag 5").name
        'vw --bag 5'
        """
        tree: dict[str, Any] = msgspec.to_builtins(self.exploration)
        kind = tree.pop("kind")
        main = {"epsilon": "rate", "squarecb": "gamma"}.get(kind, "")
        head = f"{kind} {tree.pop(main):g}" if main else kind
        if isinstance(self.exploration, VwExplorer):
            usual = msgspec.to_builtins(VwExplorer(model=_EXPLORER))
            head = " ".join(["vw", *(part for part in self.explorer.split() if part != "--cb_explore_adf")])
        else:
            usual = msgspec.to_builtins(type(self.exploration)())
        rest = [f"{_SHORT.get(key, key)} {value}" for key, value in tree.items() if value != usual.get(key)]
        share = [f"discovery {self.discovery_share:g}"] if self.discovery_share else []
        return ", ".join([head, *rest, *share])

    def rules_from(self, rules: Sequence[Rule]) -> list[Rule]:
        """Return a surface's rules with this discovery share in place of theirs; their order says what gives way."""
        if self.discovery_share == discovery_share_of(rules):
            return list(rules)
        found = [rule for rule in rules if isinstance(rule, Discovery)]
        if not found:
            return [Discovery(share=self.discovery_share), *rules]
        # The last one is the one at work, as in the draw.
        own = [msgspec.structs.replace(found[-1], share=self.discovery_share)] if self.discovery_share else []
        kept = [rule for rule in rules if not isinstance(rule, Discovery) or rule is found[-1]]
        place = next(n for n, rule in enumerate(kept) if rule is found[-1])
        return [*kept[:place], *own, *kept[place + 1 :]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is combined; an empty entry takes the incumbent's value.

    Attributes:
        kinds: Kinds of exploration.
        rates: Of `epsilon`.
        temperatures: Of `epsilon` and `softmax`; None is the interquartile range of the scores.
        gammas: Of `squarecb`.
        shortlists: Of all.
        discovery_shares: Of all.
        explorers: VW's arguments of its explorers, each tried as a kind of its own.
    """

    kinds: Sequence[Kind] = ("epsilon", "softmax", "squarecb")
    rates: Sequence[float] = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3)
    temperatures: Sequence[float | None] = ()
    gammas: Sequence[float] = (100.0,)
    shortlists: Sequence[int] = ()
    discovery_shares: Sequence[float] = ()
    explorers: Sequence[str] = ()


def discovery_share_of(rules: Sequence[Rule]) -> float:
    """Return the share that rules reserve for discovery; the last rule is the one at work."""
    shares = [rule.share for rule in rules if isinstance(rule, Discovery)]
    return shares[-1] if shares else 0.0


def expand(grid: Grid, incumbent: Candidate) -> list[Candidate]:
    """Return the incumbent, then every combination of the grid that differs from it.

    Raises:
        ValueError: a value is out of its range, or the incumbent is a VW explorer, of which no sample log can be made.
    """
    if isinstance(incumbent.exploration, VwExplorer):
        raise ValueError("a surface that explores with a VW model cannot be tuned; compare it with `hone replay`")
    shares = grid.discovery_shares or (incumbent.discovery_share,)
    found = [
        Candidate(exploration, share)
        for kind in grid.kinds
        for exploration in _explorations(kind, grid, incumbent.exploration)
        for share in shares
    ]
    found += [
        vw_candidate(arguments, shortlist=shortlist, discovery_share=share)
        for arguments in grid.explorers
        for shortlist in grid.shortlists or (None,)
        for share in shares
    ]
    return list(dict.fromkeys([incumbent, *found]))


def vw_candidate(arguments: str, *, shortlist: int | None = None, discovery_share: float = 0.0) -> Candidate:
    """Return one of VW's explorers as a candidate.

    Raises:
        ValueError: the arguments are not an explorer's, or the shortlist is longer than one may be.
    """
    exploration = VwExplorer(model=_EXPLORER)
    if shortlist is not None:
        exploration = msgspec.structs.replace(exploration, shortlist=shortlist)
    return Candidate(exploration, discovery_share, " ".join(parse_explorer_arguments(arguments)))


def _explorations(kind: Kind, grid: Grid, now: Exploration) -> Iterator[Exploration]:
    usual: dict[Kind, Epsilon | Softmax | SquareCB] = {
        "epsilon": Epsilon(), "softmax": Softmax(), "squarecb": SquareCB(),
    }  # fmt: skip
    base = now if not isinstance(now, Greedy | VwExplorer) and isinstance(now, type(usual[kind])) else usual[kind]
    shortlists = grid.shortlists or (base.shortlist,)
    if isinstance(base, SquareCB):
        for gamma, shortlist in product(grid.gammas or (base.gamma,), shortlists):
            yield SquareCB(gamma=gamma, shortlist=shortlist, uniform_share=base.uniform_share)
        return
    temperatures = grid.temperatures or (base.temperature,)
    for temperature, shortlist in product(temperatures, shortlists):
        if isinstance(base, Softmax):
            yield Softmax(temperature=temperature, shortlist=shortlist, uniform_share=base.uniform_share)
        else:
            for rate in grid.rates or (base.rate,):
                yield Epsilon(rate=rate, temperature=temperature, shortlist=shortlist, uniform_share=base.uniform_share)
