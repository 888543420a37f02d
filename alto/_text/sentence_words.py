"""Words that tell where English sentences end: abbreviations, and words that begin a sentence."""

from __future__ import annotations

__all__ = ("LAST", "MAYBE", "NEVER", "STARTERS")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NEVER = _words("""
    brig capt cf cmdr cpl dr drs e.g eg i.e ie lt maj messrs mlle mme mr mrs ms msgr mx pp prof sgt
    supt viz vs
""")
"""Abbreviations that something always follows, mostly a name or a number."""

LAST = _words("""
    apr aug bd dec etc feb fn fri ft hr hrs jan jul jun kg km lb lbs mi nov oct oz sep sept thu thur
    thurs tue tues wed yr yrs
""")
"""Abbreviations that no name follows: units, months, days, and so on."""

MAYBE = _words("""
    abbr acad adm al approx apt asst assn assoc ave avg bldg blvd bros ca ch chap co col corp ct dept
    dist div ed edn eds eq eqs esp est et fig figs fl gen gov hon inc incl ing intl jr llc ltd mt mts
    natl nos nr orig ph.d phd pl pres pt rd ref rep repr resp rev sec sect sen sens ser sr st tr univ
    ver vol vols
""")
"""Abbreviations that a name or a number may follow, or the next sentence."""

STARTERS = _words("""
    a about after again all also although an and another any as at because before both but by can
    could did do does during each even every finally first for from had has have he hence her here
    his how however i if in instead is it its just later let like many maybe meanwhile more moreover
    most my neither next no nobody none nor not note nothing now of on once one only or other others
    our perhaps please second see several she should similarly since so some sometimes soon still such
    that the their then there therefore these they third this those though thus to today two under
    until was we were what when where whether which while who whose why will with within without
    would yes yet you your
""")
"""Words that begin a sentence and no name."""
