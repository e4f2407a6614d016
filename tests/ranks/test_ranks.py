"""What is said where the other processes of a job are lost; that they are is tested in tests/cluster."""

import pytest
from accelerate import Accelerator

from spkid_dist.ranks.together import LostRanksError, explain_lost_ranks

pytestmark = pytest.mark.fast

GLOO = {
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.77.0.1]:9644": (
        r"\(Connection closed by peer \[10\.77\.0\.1\]:9644\)"
    ),
    "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 15000ms for recv": (
        r"\(Timed out waiting 15000ms for recv\)"
    ),
    "[../gloo/transport/tcp/pair.cc:1] Read error [10.77.0.1]:1: Connection reset by peer. Check the logs.": (
        r"\(Read error \[10\.77\.0\.1\]:1: Connection reset by peer\)"
    ),
}


@pytest.mark.parametrize("message", GLOO)
def test_an_error_of_gloo_becomes_one_line(message, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with (
        pytest.raises(
            LostRanksError, match=rf"^rank 0 of 1 on .*--timeout_minutes 2 {GLOO[message]}; .*--resume auto$"
        ),
        explain_lost_ranks(Accelerator(), 2.0),
    ):
        raise RuntimeError(message)


def test_another_error_stays_what_it_is(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2") as raised, explain_lost_ranks(Accelerator(), 2.0):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert not isinstance(raised.value, LostRanksError)
