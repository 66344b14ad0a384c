"""The cheap half of a run in Python calls: read, audit, split, fit, evaluate, compare.

Run it with ``python examples/quickstart.py``; it takes seconds and needs no language model.
"""

from frugalrec.data.audit import audit
from frugalrec.data.simulate import film_club
from frugalrec.data.splits import split
from frugalrec.evaluation.compare import difference, interval
from frugalrec.evaluation.evaluate import evaluate
from frugalrec.recommenders import create
from frugalrec.types import Evaluation


def main(members: int = 600) -> dict[str, Evaluation]:
    """Compare three cheap models on the film club and print what each recommends."""
    dataset = film_club(n_members=members, seed=0)
    folds = split(dataset, "time")
    for finding in audit(dataset, folds).findings:
        print(f"{finding.severity}: {finding.message}")

    history, results = folds.history("test"), {}
    for name in ("popularity", "markov", "ease"):
        model = create(name).fit(folds.train, folds.valid)
        results[name] = evaluate(
            name, lambda users, model=model: model.score(users, history), folds, "test", ["ndcg@10"]
        )
        found = interval(results[name].values["ndcg@10"])
        print(f"{name:12} NDCG@10 {found.mean:.4f} [{found.low:.4f}, {found.high:.4f}]")

    gap = difference(results["ease"], results["popularity"], "ndcg@10")
    print(f"EASE - popularity: {gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}], {gap.n} users, paired")

    user = folds.users("test")[:1]
    best = create("ease").fit(history).recommend(user, k=5)
    print("user", dataset.user_ids[user[0]], "->", [dataset.titles[i] for i in best.items[0]])
    return results


if __name__ == "__main__":
    main()
