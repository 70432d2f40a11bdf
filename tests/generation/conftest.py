"""The models of the tests of streams."""

from __future__ import annotations

from functools import partial

import pytest
from asked_models import DECODER, make

from speechzoo.models import LLaMAOmni, LLaSM


@pytest.fixture(scope="session")
def omni(tiny_llm_dir, tiny_whisper_pt) -> LLaMAOmni:
    return make(LLaMAOmni, tiny_llm_dir, tiny_whisper_pt, unit_decoder=DECODER)


@pytest.fixture(scope="session")
def label(tiny_llm_dir, tiny_whisper_pt) -> LLaMAOmni:
    return make(LLaMAOmni, tiny_llm_dir, tiny_whisper_pt, unit_decoder=partial(DECODER, align="label"))


@pytest.fixture(scope="session")
def llasm(tiny_llm_dir, tiny_whisper_pt) -> LLaSM:
    return make(LLaSM, tiny_llm_dir, tiny_whisper_pt)
