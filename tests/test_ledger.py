import json

import pytest

from frugalrec.errors import ConfigError
from frugalrec.ledger import Ledger, Prices, Usage, measure


def test_usage_adds_up_and_peak_memory_is_the_larger():
    total = Usage(wall_s=1, tokens_in=10, peak_memory_bytes=5) + Usage(
        wall_s=2, tokens_in=1, peak_memory_bytes=3
    )
    assert (total.wall_s, total.tokens_in, total.peak_memory_bytes) == (3, 11, 5)


def test_ledger_goes_through_json():
    ledger = Ledger()
    ledger.record("tune", Usage(wall_s=1.5, tokens_trained=7))
    ledger.record("tune", Usage(wall_s=0.5))
    again = Ledger.from_dict(json.loads(json.dumps(ledger.to_dict())))
    assert again.stages == ledger.stages
    assert again.total == Usage(wall_s=2.0, tokens_trained=7)


def test_measure_takes_its_own_seconds_and_the_models_tokens():
    with measure() as meter:
        meter.add(Usage(tokens_in=3, wall_s=1000))
        sum(range(100_000))
    assert meter.usage.tokens_in == 3
    assert 0 < meter.usage.wall_s < 100
    assert meter.usage.peak_memory_bytes > 1_000_000


def test_money_is_tokens_times_dated_prices():
    prices = Prices(as_of="2026-01-01", per_million_tokens_in=2.0, per_million_tokens_out=10.0)
    usage = Usage(tokens_in=500_000, tokens_out=100_000)
    assert prices.money(usage) == pytest.approx(500_000 / 1e6 * 2 + 100_000 / 1e6 * 10)


def test_an_unknown_price_is_an_error_and_never_zero():
    prices = Prices(as_of="2026-01-01", per_million_tokens_in=2.0)
    with pytest.raises(ConfigError, match="2026-01-01 has no per_million_tokens_out"):
        prices.money(Usage(tokens_out=1))
    assert prices.money(Usage(tokens_in=0)) == 0


def test_an_own_machine_is_paid_by_the_hour():
    prices = Prices(as_of="2026-01-01", per_machine_hour=1.8)
    assert prices.money(Usage(wall_s=1000, tokens_in=10**6)) == pytest.approx(0.5)
