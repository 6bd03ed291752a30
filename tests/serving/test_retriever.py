"""Candidates from a trained bundle. Oracle: the dataset reader's query arrays, a brute-force ranking of all items."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from conversion_retrieval.contracts import read_manifest, write_manifest
from conversion_retrieval.errors import CorruptArtifactError, UserError
from conversion_retrieval.features.dataset import FeatureDataset, Split
from conversion_retrieval.features.spec import FeatureSpec
from conversion_retrieval.index.build import apply_setting, build, needs_lifting, recipe
from conversion_retrieval.recorded_config import SERVED
from conversion_retrieval.registry.decision import ChampionState
from conversion_retrieval.registry.registry import Registry
from conversion_retrieval.serving import commands
from conversion_retrieval.serving.champion import ChampionLoader
from conversion_retrieval.serving.commands import read_user_events, retrieve_requests, retrieve_user
from conversion_retrieval.serving.requests import Request, UserEvents, inline_events
from conversion_retrieval.serving.retriever import Retriever
from conversion_retrieval.tables import read_tables
from tests.serving.conftest import Run


@pytest.fixture(scope="module")
def events(run: Run) -> UserEvents:
    return read_user_events(read_tables(run.data_dir))


@pytest.fixture(scope="module")
def dataset(run: Run) -> FeatureDataset:
    return FeatureDataset.open(run.directory("features"), FeatureSpec.load(run.directory("spec")))


def requests_of(dataset: FeatureDataset, split: Split, rows: np.ndarray, **options: object) -> list[Request]:
    """The split's queries as a caller would ask them."""
    surfaces = [None, *dataset.spec.surfaces]
    items = dataset.item_ids.to_pylist()
    return [
        Request(
            user_id=dataset.user_ids[int(split.user[row])].as_py(),
            time=int(split.time[row]),
            surface=surfaces[split.surface[row]],
            context_item_id=None if split.context_item[row] < 0 else items[split.context_item[row]],
            context_embedding=None
            if split.context_embedding[row] < 0
            else tuple(split.context_embeddings[split.context_embedding[row]].tolist()),
            **options,
        )
        for row in rows
    ]


def ask(retriever: Retriever, events: UserEvents, requests: list[Request]):
    chosen = events.of_users([request.user_id for request in requests])
    return retriever.retrieve(requests, chosen, np.arange(len(requests)))


def some_rows(split: Split) -> np.ndarray:
    return np.linspace(0, len(split) - 1, 40).astype(int)


def test_served_features_equal_those_of_training_for_every_test_query(
    retriever: Retriever, dataset: FeatureDataset, events: UserEvents
) -> None:
    split = dataset.split("test")
    rows = np.arange(len(split))
    requests = requests_of(dataset, split, rows)
    chosen = events.of_users([request.user_id for request in requests])
    served = retriever.features.encode(requests, chosen, rows).arrays
    trained = dataset.query_arrays(split, rows)
    for field in dataclasses.fields(trained):
        if field.name == "users":
            continue
        np.testing.assert_allclose(getattr(served, field.name), getattr(trained, field.name), err_msg=field.name)
    for name in ("categorical", "numeric"):
        np.testing.assert_array_equal(getattr(served.users, name), getattr(trained.users, name))
    assert all(np.array_equal(served.users.embeddings[n], v) for n, v in trained.users.embeddings.items())


def test_candidates_are_the_best_of_all_items_by_dot_product(
    retriever: Retriever, run: Run, dataset: FeatureDataset, events: UserEvents
) -> None:
    split = dataset.split("test")
    rows = some_rows(split)
    vectors = retriever.model.encode_queries(dataset, split, rows)
    item_vectors = np.load(run.directory("index") / "item_embeddings.npy")
    ids = pq.read_table(run.directory("index") / "item_ids.parquet")["item_id"].to_numpy()
    for vector, answer in zip(vectors, ask(retriever, events, requests_of(dataset, split, rows, k=10)), strict=True):
        scores = item_vectors @ vector
        np.testing.assert_allclose(answer.scores, np.sort(scores)[::-1][:10], atol=1e-5)
        np.testing.assert_allclose(
            [scores[np.flatnonzero(ids == i)[0]] for i in answer.item_ids], answer.scores, atol=1e-5
        )


def history_of(events: UserEvents, request: Request) -> set[str]:
    table = events.of_users([request.user_id]).table.to_pylist()
    kinds = ("click", "save", "add_to_cart", "checkout")
    return {e["item_id"] for e in table if e["event_type"] in kinds and known_at(e) < request.time}


def known_at(event: dict) -> int:
    times = [t for t in (event["event_time"], event["reported_time"]) if t is not None]
    return max(pa.scalar(t, pa.timestamp("us", tz="UTC")).cast(pa.int64()).as_py() for t in times)


def test_excluding_seen_items_leaves_the_rest_in_order(
    retriever: Retriever, dataset: FeatureDataset, events: UserEvents
) -> None:
    split = dataset.split("test")
    rows = some_rows(split)
    requests = requests_of(dataset, split, rows, k=20, exclude_seen=True)
    everything = ask(retriever, events, [dataclasses.replace(r, k=1000, exclude_seen=False) for r in requests])
    for request, answer, all_items in zip(requests, ask(retriever, events, requests), everything, strict=True):
        seen = history_of(events, request)
        assert answer.item_ids == tuple(i for i in all_items.item_ids if i not in seen)[:20]


def test_advertiser_cap_keeps_the_best_of_each_advertiser(
    retriever: Retriever, dataset: FeatureDataset, events: UserEvents
) -> None:
    split = dataset.split("test")
    requests = requests_of(dataset, split, some_rows(split), k=25, advertiser_cap=2)
    everything = ask(retriever, events, [dataclasses.replace(r, k=1000, advertiser_cap=0) for r in requests])
    for answer, all_items in zip(ask(retriever, events, requests), everything, strict=True):
        taken: dict[str, int] = {}
        expected = []
        for item, advertiser in zip(all_items.item_ids, all_items.advertiser_ids, strict=True):
            taken[advertiser] = taken.get(advertiser, 0) + 1
            if taken[advertiser] <= 2:
                expected.append(item)
        assert answer.item_ids == tuple(expected[:25])


@pytest.mark.parametrize("setting", ["nprobe=1", "nprobe=2"])
@pytest.mark.parametrize(
    "options", [{"k": 150}, {"k": 1000}, {"k": 30, "advertiser_cap": 1}, {"k": 100, "exclude_seen": True}]
)
def test_an_approximate_index_that_runs_out_of_items_gives_as_many_as_an_exact_one(
    retriever: Retriever, dataset: FeatureDataset, events: UserEvents, setting: str, options: dict
) -> None:
    """Its lists hold a fifth of the items each. Oracle: the exact index."""
    vectors = np.asarray(retriever.item_vectors)
    ivf = build(recipe("ivf", *vectors.shape, lift=needs_lifting(vectors)), vectors)
    apply_setting(ivf, setting)
    approximate = dataclasses.replace(retriever, index=dataclasses.replace(retriever.index, index=ivf))
    split = dataset.split("test")
    requests = requests_of(dataset, split, some_rows(split), **options)
    found, expected = ask(approximate, events, requests), ask(retriever, events, requests)
    assert [len(answer.item_ids) for answer in found] == [len(answer.item_ids) for answer in expected]
    for answer in found:
        assert len(set(answer.item_ids)) == len(answer.item_ids)
        assert list(answer.scores) == sorted(answer.scores, reverse=True)
    if options["k"] > 100:  # more than both lists hold: all come from the exact search
        for answer, exact in zip(found, expected, strict=True):
            np.testing.assert_allclose(answer.scores, exact.scores, atol=1e-5)


def test_reasons_are_the_history_items_with_the_largest_cosine(
    retriever: Retriever, run: Run, dataset: FeatureDataset, events: UserEvents
) -> None:
    split = dataset.split("test")
    request = next(
        r for r in requests_of(dataset, split, some_rows(split), k=5) if 2 <= len(history_of(events, r)) <= 16
    )
    (answer,) = ask(retriever, events, [request])
    vectors = np.load(run.directory("index") / "item_embeddings.npy")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = pq.read_table(run.directory("index") / "item_ids.parquet")["item_id"].to_pylist()
    history = sorted(history_of(events, request) & set(ids))
    for item, reasons in zip(answer.item_ids, answer.reasons, strict=True):
        cosine = {h: float(vectors[ids.index(h)] @ vectors[ids.index(item)]) for h in history}
        best = sorted(cosine.values(), reverse=True)[:3]
        assert [cosine[reason] for reason in reasons] == pytest.approx(best, abs=1e-5)


def test_events_at_or_after_the_request_change_nothing(retriever: Retriever) -> None:
    item, later = (retriever.index.item_ids[i].as_py() for i in (3, 5))
    past = {"item_id": item, "event_type": "click", "event_time": 10}
    future = [{"item_id": later, "event_type": "checkout", "event_time": t} for t in (100, 101)]
    late = {"item_id": later, "event_type": "checkout", "event_time": 20, "reported_time": 100}
    request = Request(user_id="u", time=100, k=10)
    alone, all_, unreported = (
        retriever.retrieve([request], inline_events([history]), np.zeros(1, np.int64))
        for history in ([past], [past, *future], [past, late])
    )
    assert alone == all_ == unreported


def test_order_of_inline_events_and_company_in_a_batch_do_not_matter(retriever: Retriever) -> None:
    ids = retriever.index.item_ids.to_pylist()
    history = [{"item_id": ids[i], "event_type": "click", "event_time": i * 1000} for i in range(8)]
    request = Request(user_id="u", time=10**9, k=10)
    (alone,) = retriever.retrieve([request], inline_events([history]), np.zeros(1, np.int64))
    reversed_, _ = retriever.retrieve([request] * 2, inline_events([history[::-1], history[:2]]), np.arange(2))
    assert reversed_.item_ids == alone.item_ids
    np.testing.assert_allclose(reversed_.scores, alone.scores, atol=1e-6)


def test_user_without_history_and_unknown_items_still_gets_candidates(retriever: Retriever) -> None:
    strange = [{"item_id": "never seen", "event_type": "click", "event_time": 1}]
    request = Request(user_id="new", time=10, surface="no such surface", context_item_id="neither", k=7)
    for history in ([], strange):
        (answer,) = retriever.retrieve([request], inline_events([history]), np.zeros(1, np.int64))
        assert len(set(answer.item_ids)) == 7
        assert answer.reasons == ((),) * 7


def test_asking_for_more_than_there_is_gives_everything_once(retriever: Retriever) -> None:
    request = Request(user_id="u", time=10, k=1000)
    (answer,) = retriever.retrieve([request], inline_events([[]]), np.zeros(1, np.int64))
    assert sorted(answer.item_ids) == sorted(retriever.index.item_ids.to_pylist())


def test_repeated_event_ids_count_once(events: UserEvents) -> None:
    doubled = pa.concat_tables([events.table, events.table])
    assert UserEvents.of_table(doubled).table.equals(events.table)


def test_retrieve_user_and_retrieve_requests_agree(
    registry: Registry, run: Run, events: UserEvents, tmp_path: Path
) -> None:
    users = list(events.user_ids[:3])
    single = retrieve_user(registry.uri, str(run.data_dir), users[1], surface="search", k=9)
    pq.write_table(pa.table({"user_id": users, "surface": ["search"] * 3}), tmp_path / "requests.parquet")
    output = retrieve_requests(registry.uri, str(run.data_dir), tmp_path / "requests.parquet", None, k=9)
    table = pq.read_table(output).to_pandas()
    assert list(table["request"]) == [0] * 9 + [1] * 9 + [2] * 9
    assert tuple(table.loc[table["request"] == 1, "item_id"]) == single.item_ids


def test_retrieving_for_an_unknown_user_is_one_line(registry: Registry, run: Run) -> None:
    with pytest.raises(UserError, match="found no events of 'nobody'"):
        retrieve_user(registry.uri, str(run.data_dir), "nobody")


EMBEDDINGS = {
    (1.0, 2.0): "expected 8 numbers in context_embedding, found 2",
    (): "expected 8 numbers in context_embedding, found 0",
    (*range(9),): "expected 8 numbers in context_embedding, found 9",
    (*[1.0] * 7, float("nan")): "expected numbers of magnitudes up to 1e\\+06 in context_embedding, found others",
    (*[1.0] * 7, None): "expected numbers of magnitudes up to 1e\\+06 in context_embedding, found others",
    (*[1.0] * 7, -1.1e6): "expected numbers of magnitudes up to 1e\\+06 in context_embedding, found others",
    (*[1.0] * 7, 1e300): "expected numbers of magnitudes up to 1e\\+06 in context_embedding, found others",
}


@pytest.mark.parametrize(("embedding", "says"), EMBEDDINGS.items())
def test_a_context_embedding_that_the_model_cannot_read_is_never_left_out_unsaid(
    retriever: Retriever, registry: Registry, run: Run, tmp_path: Path, embedding: tuple, says: str
) -> None:
    requests = [Request(user_id="u", time=10), Request(user_id="u", time=10, context_embedding=embedding)]
    with pytest.raises(UserError, match=f"request 1: {says}"):
        retriever.retrieve(requests, inline_events([[], []]), np.arange(2))
    rows = [{"user_id": "u", "context_embedding": None}] * 300 + [{"user_id": "u", "context_embedding": embedding}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "requests.parquet")
    with pytest.raises(UserError, match=rf"requests\.parquet, row 300: {says}"):
        retrieve_requests(registry.uri, str(run.data_dir), tmp_path / "requests.parquet", None)


def test_a_model_without_context_embeddings_takes_none(retriever: Retriever) -> None:
    catalogue = retriever.features.catalogue
    without = dataclasses.replace(catalogue, spec=dataclasses.replace(catalogue.spec, context_embedding_dim=0))
    features = dataclasses.replace(retriever.features, catalogue=without)
    request = Request(user_id="u", time=10, context_embedding=(1.0, 2.0))
    with pytest.raises(UserError, match="expected no context_embedding, as this model was trained without, found 2"):
        features.encode([request], inline_events([[]]), np.zeros(1, np.int64))


@pytest.mark.parametrize("output", ["nowhere/y.parquet", "directory", "requests.parquet/y.parquet"])
def test_an_output_that_cannot_be_written_is_one_line_before_the_champion_is_loaded(
    tmp_path: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Registry, "open", lambda uri: pytest.fail("the registry was opened"))
    (tmp_path / "directory").mkdir()
    pq.write_table(pa.table({"user_id": ["u"]}), tmp_path / "requests.parquet")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"expected a (directory|file) to write .*, found") as caught:
        retrieve_requests("registry", "data", tmp_path / "requests.parquet", tmp_path / output)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("surfce", ["search"], r"expected requests with columns out of user_id, .* found 'surfce'"),
        ("time", pa.array([0], pa.timestamp("us")), "expected times with a time zone in column time of .*, found"),
        ("time", ["2026-01-05T12:00:00"], r"expected requests at .*, found: .*expected a zone offset"),
        ("time", ["1767614400"], r"expected requests at .*, found: .*1767614400"),
        *(
            ("time", values, f"expected times with a time zone in column time of .*, found {kind}.*: write timestamps")
            for values, kind in (
                ([1767614400], "int64"),
                ([1767614400.0], "double"),
                (pa.array([20_458], pa.date32()), "date32"),
                (pa.array([0], pa.duration("us")), "duration"),
            )
        ),
    ],
)
def test_a_request_column_that_would_be_left_out_or_guessed_is_refused(
    tmp_path: Path, column: str, values: object, says: str
) -> None:
    path = tmp_path / "requests.parquet"
    pq.write_table(pa.table({"user_id": ["u"], column: values}), path)
    with pytest.raises(UserError, match=says):
        retrieve_requests("registry", "data", path, None)


def test_requests_that_are_not_there_are_told_as_that(tmp_path: Path) -> None:
    path = tmp_path / "requests.parquet"
    with pytest.raises(UserError, match=f"^expected requests at {path}, found no such file$"):
        retrieve_requests("registry", "data", path, None)


def test_integer_ids_that_became_floats_because_of_nulls_are_those_integers(tmp_path: Path) -> None:
    path, ids = tmp_path / "requests.parquet", [7, 12_345_678_901, 2**53 - 1]
    columns = {"user_id": pa.array(ids, pa.float64()), "context_item_id": pa.array([None, *ids[1:]], pa.float64())}
    pq.write_table(pa.table(columns), path)
    read = commands._read_requests(path)
    assert read["user_id"].to_pylist() == list(map(str, ids))
    assert read["context_item_id"].to_pylist() == [None, *map(str, ids[1:])]


def test_times_of_requests_may_be_timestamps_or_texts_with_a_zone(
    registry: Registry, run: Run, events: UserEvents, tmp_path: Path
) -> None:
    start, end = events.offsets[:2]
    moment = pc.max(events.table["event_time"][start:end])
    text = moment.as_py().isoformat()
    columns = [
        pa.array([moment.cast(pa.timestamp("us", "UTC")).as_py()], pa.timestamp("ns", "Europe/Berlin")),
        pa.array([text]),
        pa.array([text], pa.large_string()),
        pa.array([text]).dictionary_encode(),
    ]
    answers = []
    for column in columns:
        pq.write_table(pa.table({"user_id": events.user_ids[:1], "time": column}), tmp_path / "requests.parquet")
        output = retrieve_requests(registry.uri, str(run.data_dir), tmp_path / "requests.parquet", None, k=5)
        answers.append(pq.read_table(output))
    request = Request(user_id=events.user_ids[0], time=moment.cast(pa.int64()).as_py(), k=5)
    (expected,) = ask(ChampionLoader(registry).load(), events, [request])
    assert tuple(answers[0]["item_id"].to_pylist()) == expected.item_ids
    assert all(answer.equals(answers[0]) for answer in answers)
    pq.write_table(pa.table({"user_id": ["u"], "time": pa.nulls(1)}), tmp_path / "requests.parquet")
    assert retrieve_requests(registry.uri, str(run.data_dir), tmp_path / "requests.parquet", None, k=5).is_file()


def test_data_that_cannot_be_read_are_told_of_before_the_champion_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Registry, "open", lambda uri: pytest.fail("the registry was opened"))
    pq.write_table(pa.table({"user_id": ["u"]}), tmp_path / "requests.parquet")
    with pytest.raises(UserError, match="s3"):
        retrieve_user("registry", "s3://bucket/data", "u")
    with pytest.raises(UserError, match="s3"):
        retrieve_requests("registry", "s3://bucket/data", tmp_path / "requests.parquet", None)
    assert [path.name for path in tmp_path.iterdir()] == ["requests.parquet"]


def test_the_requests_are_never_replaced_by_their_answers(tmp_path: Path) -> None:
    path = tmp_path / "requests.parquet"
    pq.write_table(pa.table({"user_id": ["u"]}), path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="expected another file than the requests to write to"):
        retrieve_requests("registry", "data", path, tmp_path / "." / "requests.parquet")
    assert path.read_bytes() == before


def test_nothing_is_left_of_candidates_that_could_not_all_be_retrieved(
    registry: Registry, run: Run, tmp_path: Path
) -> None:
    rows = [{"user_id": "u", "context_embedding": None}] * 300 + [{"user_id": "u", "context_embedding": [1.0]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "requests.parquet")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "candidates.parquet").write_text("of an earlier run")
    with pytest.raises(UserError, match="row 300"):
        retrieve_requests(
            registry.uri, str(run.data_dir), tmp_path / "requests.parquet", tmp_path / "out" / "candidates.parquet"
        )
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["of an earlier run"]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({}, r"column user_id in .*requests\.parquet, found the columns none"),
        ({"item_id": ["i"], "price": [1.0]}, r"column user_id in .*parquet, found the columns item_id, price"),
        ({"user_id": ["a", None]}, r"expected a user_id in every row of .*requests\.parquet, found 1 without"),
        ({"user_id": ["a"], "time": ["x"]}, r"expected requests at .*requests\.parquet, found: .*x"),
    ],
)
def test_requests_of_the_wrong_shape_are_one_line(
    registry: Registry, run: Run, tmp_path: Path, columns: dict[str, list], says: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "requests.parquet")
    with pytest.raises(UserError, match=says):
        retrieve_requests(registry.uri, str(run.data_dir), tmp_path / "requests.parquet", None)


def test_altered_bundle_is_not_served(run: Run, tmp_path: Path) -> None:
    bundle_dir, _ = run.bundle(tmp_path, ChampionState(status="absent"))
    with (bundle_dir / "items.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(CorruptArtifactError, match=r"items\.parquet"):
        Retriever.open(bundle_dir)


def recorded_by_another_release(run: Run, root: Path, remove: str) -> Path:
    """A whole bundle of release 0.0.9 whose configuration lacks ``section.option``."""
    bundle_dir, _ = run.bundle(root, ChampionState(status="absent"))
    path, (section, option) = bundle_dir / "model" / "config.json", remove.split(".")
    values = json.loads(path.read_text())
    del values[section][option]
    path.write_text(json.dumps(values))
    inputs = read_manifest(bundle_dir, kind="bundle").inputs
    for kind in ("model", "index"):
        old = read_manifest(bundle_dir / kind, kind=kind)
        links = old.inputs | ({"model": inputs["model"]} if kind == "index" else {})
        inputs[kind] = write_manifest(bundle_dir / kind, kind=kind, inputs=links, metadata=old.metadata).digest
        edit_manifest(bundle_dir / kind, package_version="0.0.9")
    metadata = read_manifest(bundle_dir, kind="bundle").metadata
    write_manifest(bundle_dir, kind="bundle", inputs=inputs, metadata=metadata)
    return bundle_dir


def edit_manifest(directory: Path, **changes: object) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_older_bundle_without_an_option_that_answers_depend_on_is_refused_by_release(
    run: Run, tmp_path: Path
) -> None:
    bundle_dir = recorded_by_another_release(run, tmp_path, "model.popularity_bias")
    with pytest.raises(CorruptArtifactError, match=r"release 0\.0\.9: model\.popularity_bias is missing; use release"):
        Retriever.open(bundle_dir)


def test_an_older_bundle_without_an_option_of_training_answers_as_before(
    run: Run, retriever: Retriever, events: UserEvents, dataset: FeatureDataset, tmp_path: Path
) -> None:
    older = Retriever.open(recorded_by_another_release(run, tmp_path, "training.seed"))
    split = dataset.split("test")
    requests = requests_of(dataset, split, some_rows(split), k=10)
    assert ask(older, events, requests) == ask(retriever, events, requests)


def test_serving_reads_no_feature_option_that_old_bundles_may_lack_unnoticed(
    retriever: Retriever, dataset: FeatureDataset, events: UserEvents
) -> None:
    read: set[str] = set()

    class Watched:
        def __getattr__(self, name: str) -> object:
            read.add(name)
            return getattr(retriever.features.config, name)

    split = dataset.split("test")
    requests = requests_of(dataset, split, some_rows(split))
    chosen = events.of_users([request.user_id for request in requests])
    watched = dataclasses.replace(retriever.features, config=Watched())
    watched.encode(requests, chosen, np.arange(len(requests)))
    assert read == set(SERVED["features"])
