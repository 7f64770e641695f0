import json

import pytest

from memgpt_lite import measurements

NAMES = sorted(file.stem for file in measurements.FOLDER.glob("*.jsonl"))


@pytest.mark.parametrize("name", NAMES)
def test_every_case_was_measured_once_and_has_the_same_figures(name):
    cases = measurements.load(name)
    assert cases and len({json.dumps(case) for case in cases}) == len(cases)
    assert all(set(case) == set(cases[0]) for case in cases if case.get("task") == cases[0].get("task"))


def test_what_is_missing_is_what_was_not_added(tmp_path, monkeypatch):
    monkeypatch.setattr(measurements, "FOLDER", tmp_path)
    cases = [{"slots": slots, "seed": seed} for slots in (1, 2) for seed in (0, 1)]
    assert measurements.missing("trial", cases) == cases
    measurements.add("trial", cases[1] | {"accuracy": 0.5})
    measurements.add("trial", cases[2] | {"accuracy": None, "of": "Müller"})
    assert measurements.missing("trial", cases) == [cases[0], cases[3]]
    assert measurements.load("trial") == [cases[1] | {"accuracy": 0.5}, cases[2] | {"accuracy": None, "of": "Müller"}]


def test_an_unknown_measurement_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="choose one of how_many_slots, million_tokens"):
        measurements.load("nothing")
