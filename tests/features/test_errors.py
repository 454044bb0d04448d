"""UserError: one line for the user, and unchanged by pickling."""

from __future__ import annotations

import pickle

from clsd.features.errors import UserError, did_you_mean


def test_the_message_says_where_what_and_how_to_mend():
    assert str(UserError("log.csv, row 3", "no label", "add one")) == "log.csv, row 3: no label; add one"


def test_the_message_ends_without_a_mend():
    assert str(UserError("log.csv", "no label", "")) == "log.csv: no label"


def test_pickling_keeps_where_what_and_mend():
    error = UserError("a: b", "c; d", "e")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is UserError
    assert (again.where, again.what, again.hint, str(again)) == ("a: b", "c; d", "e", str(error))


def test_the_closest_known_word_is_meant():
    assert did_you_mean("gendr", ["age", "genres", "gender"]) == "did you mean 'gender'?"


def test_all_known_words_are_listed_when_none_is_close():
    assert did_you_mean("xyz", iter(["age", "gender"])) == "known: age, gender"


def test_nothing_known_is_said_so():
    assert did_you_mean("xyz", []) == "there is none"
