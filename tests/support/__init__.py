"""Statements about the code that several tests share; each raises AssertionError when it does not hold.

``test_fault_injection`` switches bugs on one by one and demands that the statement named beside the bug fails. For that
the checks reach the code through its modules, where a bug can be put in its place.
"""
# ruff: noqa: F403

from support.claims import *
from support.exchange import *
from support.maths import *
from support.measurement import *
from support.parts import *
from support.runs import *
