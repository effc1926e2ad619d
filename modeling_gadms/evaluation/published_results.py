"""The tables of the field, laid out as papers do: published figures, marked as such, above your own.

All figures are text to image, 0-100, as given in arXiv 2509.09118 or, for the methods since, by their own authors. A
cell without a figure is `-`.
"""

from .text_table import Table

PROTOCOLS = ("direct-transfer", "fine-tuned", "cross-domain")
PAPER_BENCHMARKS = ("CUHK-PEDES", "ICFG-PEDES", "RSTPReid")
COLUMNS = ("R@1", "R@5", "R@10", "mAP")

# method -> R@1 on the three benchmarks, and mAP where it is given
_DIRECT_TRANSFER = {
    "CLIP": ((12.65, 6.67, 13.45), None),
    "IRRA": None,
    "NAM": None,
    "RDE": None,
    "GA-DMS (0.1M)": ((58.95, 38.18, 47.10), None),
    "GA-DMS (1M)": ((66.26, 51.99, 55.35), None),
    "GA-DMS (5M)": ((68.34, 54.64, 57.60), None),
}
_FINE_TUNED = {
    "CLIP": None,
    "IRRA": ((73.38, 63.46, 60.20), None),
    "NAM": ((76.82, 67.05, 68.50), None),
    "RDE": ((75.94, 67.68, 65.35), None),
    "GA-DMS (1M)": ((77.02, 69.07, 70.30), None),
    "GA-DMS (5M)": ((77.60, 69.51, 71.25), (69.82, 42.30, 55.43)),
    "HAM": ((77.99, 69.95, 71.50), None),
    "Scale-TBPS": ((77.91, 68.24, 71.70), None),
    "MVR + HAM": ((78.54, 70.52, 73.75), None),
    "Bi-IRRA": ((79.43, 70.36, 72.50), None),
    "CECA": ((79.65, 74.32, 73.45), None),
}
# what a published method does at test time beyond one cosine of two embeddings; those not named here do no more
COSINE = "cosine"
AT_TEST_TIME = {
    "RDE": "similarities of two branches, added",
    "Scale-TBPS": "one model for all benchmarks; similarities normalised",
    "MVR + HAM": "paraphrases of the query and captions of the gallery by language models, averaged",
    "Bi-IRRA": "best answers re-ranked by a cross-encoder",
    "CECA": "captions of the whole gallery by a large language model, fused 0.7 / 0.3",
}
# methods whose released code chooses its checkpoint on the test set by default
SELECTED_ON_TEST = ("IRRA", "GA-DMS (0.1M)", "GA-DMS (1M)", "GA-DMS (5M)")
_CROSS_DOMAIN = dict.fromkeys(("CLIP", "IRRA", "NAM", "RDE", "GA-DMS"))
_NOTES = {
    "direct-transfer": "Direct transfer: no training on the benchmark.",
    "fine-tuned": "Fine-tuned: trained on the train split of the benchmark itself.",
    "cross-domain": "Cross-domain: trained on the benchmark left of the arrow, tested on the one right of it.",
}
_SOURCE = (
    "Text to image. *Published*: as given in arXiv 2509.09118 or, for HAM, Scale-TBPS, MVR, Bi-IRRA and CECA, by "
    "their authors; not measured here. The code released for GA-DMS and for IRRA chooses checkpoints on the test "
    "sets. Figures compare where the same is done at test time. `-`: no figure at hand."
)


def published(protocol: str) -> dict[str, dict[str, dict[str, float]]]:
    """`{"GA-DMS (5M)": {"CUHK-PEDES": {"R@1": 77.6, "mAP": 69.82}, ...}, ...}`; a method without figures is empty."""
    tables: dict[str, dict] = {
        "direct-transfer": _DIRECT_TRANSFER,
        "fine-tuned": _FINE_TUNED,
        "cross-domain": _CROSS_DOMAIN,
    }
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for method, given in tables[protocol].items():
        figures[method] = {}
        for metric, values in zip(("R@1", "mAP"), given or (), strict=False):
            for benchmark, value in zip(PAPER_BENCHMARKS, values or (), strict=False):
                figures[method].setdefault(benchmark, {})[metric] = value
    return figures


def column_of(protocol: str, model: str, benchmark: str, trained_on: str | None) -> str:
    """The column of the protocol's table that a result belongs in.

    Raises:
        ValueError: a cross-domain result that was trained where it is tested, or nowhere.
    """
    if protocol != "cross-domain":
        return benchmark
    if trained_on in (None, benchmark):
        raise ValueError(
            f"{model} on {benchmark}: cross-domain needs --trained_on, the benchmark whose train split the model was "
            "fine-tuned on; it must differ from the one it is tested on"
        )
    return f"{trained_on} → {benchmark}"


def protocol_table(protocol: str, ours: list[dict]) -> Table:
    """The protocol's table.

    Args:
        protocol (`str`): one of [`PROTOCOLS`].
        ours (`list[dict]`): results, each with `model`, `benchmark`, `scoring`, `trained_on` (cross-domain alone) and
            `metrics`, as in `evaluation.results_table`. Those of an `incomplete` copy are left out by name: no figure
            of theirs may stand under the published ones.

    Raises:
        ValueError: another protocol, or as [`column_of`].
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    if protocol == "cross-domain":
        columns = [
            f"{source} → {target}" for source in PAPER_BENCHMARKS for target in PAPER_BENCHMARKS if source != target
        ]
    else:
        columns = list(PAPER_BENCHMARKS)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    scorings: dict[str, str] = {}
    left_out = [result for result in ours if result.get("incomplete")]
    for result in ours:
        if result.get("incomplete"):
            continue
        column = column_of(protocol, result["model"], result["benchmark"], result["trained_on"])
        if column not in columns:
            columns.append(column)
        label = result["model"] if result["scoring"] == COSINE else f"{result['model']}, {result['scoring']}"
        scorings[label] = result["scoring"]
        rows.setdefault(label, {})[column] = {name: i.mean for name, i in result["metrics"]["t2i"].items()}
    figure_columns = [f"{column} {metric}" for column in columns for metric in COLUMNS]
    tables = (("*published*", AT_TEST_TIME, published(protocol)), ("**measured here**", scorings, rows))
    laid_out = []
    for source, at_test_time, table in tables:
        for method, figures in table.items():
            values = [figures.get(column, {}).get(metric) for column in columns for metric in COLUMNS]
            cells = ["-" if value is None else f"{value:.2f}" for value in values]
            laid_out.append([method, source, at_test_time.get(method, COSINE), *cells])
    notes = dict.fromkeys(
        f"Left out: {result['model']} on {result['benchmark']}, whose figures compare with no published one."
        for result in left_out
    )
    head = ["method", "source", "at test time", *figure_columns]
    return Table(f"Protocol: {protocol}", head, laid_out, words=3, above=[_NOTES[protocol]], notes=[_SOURCE, *notes])
