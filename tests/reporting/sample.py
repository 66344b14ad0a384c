"""A realistic report, made by hand: fourteen arms of a film data set, with every section filled."""

import math

from frugalrec.reporting.document import (
    Arm,
    ArmCost,
    DecileTable,
    Difference,
    Interval,
    Report,
    StageCost,
    WarmthRow,
)

ARMS = [
    # name, label, kind, ndcg@10, half width, recall@10, coverage, difference, half width, p, fit_s, ms, tokens
    ("random", "Random", "cheap", 0.0031, 0.0009, 0.0065, 0.98, -0.0882, 0.0061, 0.0, 0.001, 0.004, None),
    ("popularity", "Popularity", "cheap", 0.0412, 0.0041, 0.0811, 0.012, -0.0501, 0.0052, 0.0, 0.02, 0.006, None),
    ("recent", "Recent popularity", "cheap", 0.0633, 0.0049, 0.1202, 0.019, -0.0280, 0.0047, 0.0, 0.03, 0.006, None),
    ("markov", "Markov chain", "cheap", 0.0716, 0.0052, 0.1308, 0.41, -0.0197, 0.0045, 0.0, 0.4, 0.021, None),
    ("item-knn", "Item k-NN", "cheap", 0.0847, 0.0056, 0.1544, 0.33, -0.0066, 0.0035, 0.0002, 1.9, 0.048, None),
    ("ease", "EASE", "cheap", 0.0913, 0.0058, 0.1689, 0.29, None, None, None, 6.2, 0.055, None),
    ("als", "ALS", "cheap", 0.0789, 0.0054, 0.1497, 0.38, -0.0124, 0.0041, 0.0, 3.1, 0.031, None),
    ("sasrec", "SASRec", "cheap", 0.0902, 0.0058, 0.1702, 0.44, -0.0011, 0.0039, 0.58, 141.0, 0.31, None),
    ("max-id", "Largest item id", "control", 0.0028, 0.0008, 0.0061, 0.01, -0.0885, 0.0062, 0.0, 0.0, 0.003, None),
    ("llm-zero", "SmolLM2, zero-shot", "llm", 0.0508, 0.0045, 0.0993, 0.47, -0.0405, 0.0056, 0.0, 0.0, 96.0, 421.0),
    ("llm-tuned", "SmolLM2, tuned", "llm", 0.0871, 0.0057, 0.1611, 0.45, -0.0042, 0.0044, 0.062, 418.0, 94.0, 421.0),
    ("fusion", "EASE + tuned SmolLM2", "fusion", 0.0968, 0.0059, 0.1781, 0.37, 0.0055, 0.0026, 0.0001, 424.2, 94.1, 421.0),
    ("permuted", "Random permutation", "control", 0.0859, 0.0057, 0.1689, 0.29, -0.0054, 0.0019, 0.0, 6.2, 0.061, None),
    ("pop-rerank", "Popularity re-rank", "control", 0.0895, 0.0058, 0.1689, 0.25, -0.0018, 0.0021, 0.093, 6.2, 0.06, None),
]  # fmt: skip

DESCRIPTIONS = {
    "ease": "Closed-form linear item-item model; the first stage that the LLM re-ranks.",
    "llm-zero": "The untuned LLM scores the first stage's top 20 by likelihood.",
    "llm-tuned": "The same LLM with a LoRA adapter trained on 1,024 selected samples.",
    "fusion": "Weighted sum of EASE's and the tuned LLM's standardised scores.",
    "permuted": "EASE's top 20 for the same users, in random order within the top 10.",
    "pop-rerank": "EASE's top 20 re-ranked by popularity, at the fusion weight.",
}


def band(mean, half):
    return Interval(mean, round(mean - half, 4), round(mean + half, 4))


def arm(name, label, kind, ndcg, half, recall, coverage, diff, diff_half, p, fit, ms, tokens):
    difference = None
    if diff is not None:
        difference = {"ndcg@10": Difference(diff, round(diff - diff_half, 4), round(diff + diff_half, 4), p)}
    return Arm(
        name=name,
        label=label,
        kind=kind,
        description=DESCRIPTIONS.get(name, ""),
        users=2384,
        metrics={
            "ndcg@10": band(ndcg, half),
            "recall@10": band(recall, half * 1.9),
            "coverage@10": Interval(coverage, math.nan, math.nan),
        },
        difference=difference,
        cost=ArmCost(
            fit_s=fit,
            ms_per_user=ms,
            tokens_per_user=tokens,
            money_per_1000_users=None if tokens is None else round(tokens * 1e-3 * 0.06, 4),
        ),
    )


def deciles():
    labels = ("5–6", "7–8", "9–11", "12–15", "16–20", "21–28", "29–40", "41–62", "63–110", "111–912")
    base = {"ease": 0.0913, "llm-tuned": 0.0871, "fusion": 0.0968, "permuted": 0.0859}
    slopes = {"ease": 0.0052, "llm-tuned": 0.0006, "fusion": 0.0039, "permuted": 0.0049}
    rows = {
        name: tuple(
            band(round(base[name] + slopes[name] * (i - 4.5) + 0.002 * math.sin(3 * i), 4), 0.012)
            for i in range(10)
        )
        for name in base
    }
    return DecileTable(metric="ndcg@10", labels=labels, users=(239, 238, 239, 238, 238, 239, 238, 238, 239, 238), arms=rows)  # fmt: skip


def routing():
    """Curves with the right ends: nobody at the cheap mean, everybody at the LLM's."""
    bends = {"gain-per-cost": 0.35, "uncertainty": 0.8, "random": 1.0, "weak-quantile": 1.15, "oracle": 0.12}
    recovered = {name: round(1 / (1 + bend), 3) for name, bend in bends.items()}
    policies = [
        dict(
            name=name,
            curve=[[i / 20, round(0.0913 + 0.0055 * (i / 20) ** bend, 5)] for i in range(21)],
            area=[
                round(0.0055 * recovered[name], 5),
                round(0.0055 * recovered[name] - 0.001, 5),
                round(0.0055 * recovered[name] + 0.001, 5),
            ],
            recovered=[recovered[name], recovered[name] - 0.09, recovered[name] + 0.09],
            share_95=round(0.95 ** (1 / bend), 3),
            oracle=name == "oracle",
        )
        for name, bend in bends.items()
    ]
    groups = [dict(label=label, users=239, routed=120 - 9 * i, expected=round(0.01 - 0.0011 * i, 4))
              for i, label in enumerate(deciles().labels)]  # fmt: skip
    return dict(
        policy="gain-per-cost", budget="30%", unit="tokens", users=2384, routed=795, spent=301122.0, whole=1003741.0,
        decision=("795 of 2,384 test users get the LLM: those whose expected gain per token is largest.",),
        metric="ndcg@10", calibration_users=400, effect=[0.0061, 0.0007, 0.0118], headroom=[0.0905, 0.2411],
        reachable=0.412, foresight=[0.17, 0.07, 0.27], signals=[["log-length", -0.0031], ["entropy", 0.0012]],
        measured_users=600, policies=policies, groups=groups, places=[0.31, 0.38, 0.47, 0.5, 0.52, 0.55, 0.58, 0.61],
    )  # fmt: skip


def sample(**changes):
    """Return the report; keyword arguments replace its fields."""
    gib = 2**30
    values = dict(
        title="Film club: does a small LLM help?",
        created="2026-11-20T14:32:05+00:00",
        command="frugalrec run --config film-club.yaml --llm smollm2-135m --name film-club",
        dataset=dict(name="Film club", users=11920, items=3416, interactions=412877, density=0.01014,
                     split="global time, 80/10/10", train=330301, valid=41288, test=41288, span="2021-01-04 to 2025-12-30"),
        primary="ndcg@10",
        reference="ease",
        arms=tuple(arm(*row) for row in ARMS),
        deciles=deciles(),
        warmth=(
            WarmthRow(arm="ease", cold=Interval(0.0, 0.0, 0.0), warm=band(0.0962, 0.0061), cold_targets=122, warm_targets=2262),
            WarmthRow(arm="llm-tuned", cold=band(0.0391, 0.0184), warm=band(0.0897, 0.0059), cold_targets=122, warm_targets=2262),
            WarmthRow(arm="fusion", cold=band(0.0288, 0.0161), warm=band(0.1005, 0.0062), cold_targets=122, warm_targets=2262),
        ),
        audit=(
            dict(name="duplicate titles", severity="info", count=14, share=0.0041, message="14 items share their title with another item.",
                 examples=["Hamlet (1948) / Hamlet (1996)"], remedy="Nothing to do if the years differ."),
            dict(name="repeated interactions", severity="warning", count=1022, share=0.00248,
                 message="1,022 interactions repeat an earlier one of the same user and item.",
                 examples=["user 4411, item 902, 3 times", "user 87, item 12, 2 times"],
                 remedy="Pass --repeats keep if watching again counts; the first one is kept otherwise."),
        ),
        stages=(
            StageCost(name="data", wall_s=2.4, cpu_s=3.1, peak_memory_bytes=int(0.6 * gib), money=0.0, reused=True),
            StageCost(name="recommenders", wall_s=153.2, cpu_s=288.4, peak_memory_bytes=int(2.1 * gib), money=0.0085),
            StageCost(name="selection", wall_s=88.0, cpu_s=161.2, peak_memory_bytes=int(2.4 * gib), tokens_in=402112, llm_calls=2048, money=0.0049),
            StageCost(name="tuning", wall_s=418.3, cpu_s=812.9, peak_memory_bytes=int(4.9 * gib), tokens_trained=1294336, money=0.0232),
            StageCost(name="grounding", wall_s=229.4, cpu_s=441.0, peak_memory_bytes=int(3.2 * gib), tokens_in=501322, tokens_cached=498113, tokens_out=4768, llm_calls=2384, money=0.0127),
            StageCost(name="evaluation", wall_s=6.1, cpu_s=9.8, peak_memory_bytes=int(3.2 * gib), money=0.0003),
        ),
        currency="USD",
        prices_as_of="2026-11-01",
        selection=dict(
            scorer="dealrec", prefers="influence plus weighted effort, drawn evenly over strata of their sum",
            options={"preset": "frugal", "effort": {"pool": 2048}}, budget=1024, candidates=51200, kept=1024, seed=7,
            undefined=49152, kept_undefined=0, negative_influence_kept=0.214, negative_influence_all=0.4871,
            deciles=[0.0, 0.0, 0.0, 0.0, 0.0, 0.1953, 0.2031, 0.2002, 0.1998, 0.2016],
            examples=[
                dict(target="Aliens (1986)", history=5, influence=0.000213, effort=2.4131, score=1.2931),
                dict(target="The City of Lost Children (1995)", history=2, influence=0.000188, effort=2.2290, score=1.2702),
                dict(target="Thief (1981)", history=3, influence=-1.3e-06, effort=2.1027, score=1.2011),
            ],
            left_out=[
                dict(target="Amélie (2001)", history=4, influence=0.000209, effort=2.4093, score=1.2899),
                dict(target="Heat (1995)", history=5, influence=-0.00051, effort=0.4093, score=0.0021),
            ],
            cost=dict(
                parts=[
                    dict(name="surrogate", wall_s=31.0, tokens=0), dict(name="influence", wall_s=4.0, tokens=0),
                    dict(name="effort", wall_s=52.0, tokens=402112), dict(name="rest", wall_s=1.0, tokens=0),
                    dict(name="tuning", wall_s=418.3, tokens=1294336),
                ],
                together=dict(name="together", wall_s=506.3, tokens=1696448),
                further=dict(name="one", wall_s=0.4, tokens=1264.0),
                full=dict(name="full", wall_s=20488.7, tokens=64716800.0),
                time_ratio=0.024711, token_ratio=0.026213,
            ),
            lengths=dict(edges=[1, 3, 5, 10, 20, 50, 100], all=[9211, 10344, 13412, 9872, 6123, 2238], kept=[118, 171, 262, 233, 166, 74]),
        ),
        tuning=dict(base="SmolLM2-135M-Instruct", samples=1024, epochs=3, samples_per_s=7.34,
                    adapter_sha256="5f1d9c0b7e2a44c8b1f06a9d3e8877c2a40b9be1d2f3344556677889900aabbc",
                    loss=[[step, round(0.42 + 1.9 * math.exp(-step / 25) + 0.05 * math.sin(step), 4)] for step in range(0, 193, 4)]),
        weights=dict(name="fusion", metric="ndcg@10", chosen=0.3, grid=[[0.0, 0.0921], [0.1, 0.0948], [0.2, 0.0969], [0.3, 0.0977], [0.5, 0.0951], [0.7, 0.0922], [1.0, 0.0883]]),
        allocation=routing(),
        notes=("Three seeds for sampling, one split. A second data set is needed before a general claim.",
               "The LLM may know the films' popularity from its pre-training text."),
        versions={"frugalrec": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"},
        seeds={"split": 0, "selection": 7, "tuning": 7, "bootstrap": 0},
        hashes={"data": "b3a1c0de" * 8, "config": "77aa10ff" * 8},
        config_yaml="data:\n  name: film-club\n  split: time\nllm:\n  model: smollm2-135m\nselection:\n  budget: 1024\n",
    )  # fmt: skip
    return Report(**{**values, **changes})


def bare(**changes):
    """The same arms without any other part: quick to draw."""
    empty = dict(deciles=None, warmth=(), audit=(), stages=(), selection=None, tuning=None, weights=None, allocation=None, notes=(),
                 versions={}, seeds={}, hashes={}, config_yaml="", dataset={})  # fmt: skip
    return sample(**{**empty, **changes})
