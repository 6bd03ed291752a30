"""The spec: round trip, inference, what an edit may do, and encoding with another run's spec."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import yaml

from conversion_retrieval.errors import UserError
from conversion_retrieval.features.config import FeatureConfig
from conversion_retrieval.features.coverage import query_missing_shares
from conversion_retrieval.features.dataset import FeatureDataset
from conversion_retrieval.features.inference import Entities, build_vocabulary, infer
from conversion_retrieval.features.spec import SPEC_FILE, Column, EntitySpec, FeatureSpec, Statistic
from conversion_retrieval.features.windows import parse_time
from tests.features.tables import event, items_table, random_rows
from tests.features.worlds import build_world, short_config


def inferred(items, seen=None, template=None, **config):
    seen = np.ones(items.num_rows, bool) if seen is None else np.array(seen)
    return infer(
        items=Entities(owner="items", table=items, seen=seen),
        users=Entities(owner="users", table=pa.table({"user_id": ["u"]}), seen=np.array([True])),
        config=FeatureConfig(**config),
        surfaces=("home_feed",),
        context_embedding_dim=2,
        user_aggregates=(Statistic(name="clicks", transform="log1p", mean=1.0, std=2.0),),
        item_performance=(),
        template=template,
    )


def test_a_saved_spec_reads_back_equal_and_encodes_the_same(tmp_path):
    items = items_table(6, visual=[[float(r), 1.0] for r in range(6)])
    spec = inferred(items)
    spec.save(tmp_path)
    loaded = FeatureSpec.load(tmp_path)
    assert loaded == spec
    before, after = spec.encode_items(items), loaded.encode_items(items)
    for name in ("categorical", "numeric", "id_code"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    np.testing.assert_array_equal(after.embeddings["visual"], before.embeddings["visual"])


def test_kinds_are_inferred_from_types_and_cardinality():
    count = 600
    items = items_table(
        count,
        size=[r % 5 for r in range(count)],
        stock=list(range(count)),
        flag=[r % 2 == 0 for r in range(count)],
        vector=[[1.0, 2.0, 3.0]] * count,
        made=pa.array([0] * count, pa.timestamp("us")),
    )
    kinds = {column.name: column.kind for column in inferred(items).items.columns}
    assert kinds == {
        "advertiser_id": "categorical",
        "category": "categorical",
        "price": "numeric",
        "size": "categorical",
        "stock": "numeric",
        "flag": "categorical",
        "vector": "embedding",
    }


def test_numbers_with_a_long_tail_are_log_scaled_and_normalised_by_training_rows():
    prices = [1.0, 1.0, 1.0, 1.0, 1.0, 200.0, 7.0]
    items = items_table(7, price=prices)
    spec = inferred(items, seen=[True] * 6 + [False])
    (price,) = spec.items.numeric
    logs = np.log1p(prices)
    assert price.transform == "log1p"
    assert price.mean == pytest.approx(logs[:6].mean())
    np.testing.assert_allclose(spec.encode_items(items).numeric[:, 0], (logs - logs[:6].mean()) / logs[:6].std(), 1e-5)


def test_missing_and_unseen_values_are_zero_and_flagged():
    spec = inferred(items_table(4))
    odd = pa.table(
        {
            "item_id": ["i0", "new"],
            "advertiser_id": pa.array([None, "a0"]),
            "category": ["never seen", "c1"],
            "price": [float("nan"), 11.5],
        }
    )
    encoded = spec.encode_items(odd)
    assert encoded.id_code.tolist() == [1, 0]
    assert encoded.categorical[0].tolist() == [0, 0]
    assert encoded.categorical[1].min() > 0
    assert encoded.numeric.tolist() == [[0, 1], [0, 0]]


def test_a_vocabulary_is_cut_by_count_then_by_value():
    values = pa.chunked_array([["b", "b", "c", "a", "a", "d", None]])
    vocabulary = build_vocabulary(values, max_size=3, min_count=1)
    assert vocabulary.values.to_pylist() == ["a", "b", "c"]
    assert vocabulary.encode(pa.array(["b", "d", None])).tolist() == [2, 0, 0]
    assert build_vocabulary(values, max_size=9, min_count=2).values.to_pylist() == ["a", "b"]


def test_integers_that_became_floats_keep_their_codes():
    vocabulary = build_vocabulary(pa.chunked_array([[1, 2, 2]]), max_size=9, min_count=1)
    assert vocabulary.encode(pa.array([2.0, None, 1.0])).tolist() == [1, 0, 2]


def test_hashed_ids_share_buckets_and_leave_unseen_ids_unknown():
    items = items_table(50)
    spec = inferred(items, seen=[True] * 40 + [False] * 10, item_id_buckets=7)
    codes = spec.encode_items(items).id_code
    assert spec.item_ids.kind == "hashed"
    assert spec.item_ids.rows == 8
    assert set(codes[:40].tolist()) <= set(range(1, 8))
    assert codes[40:].tolist() == [0] * 10
    shuffled = items.take(pa.array(np.arange(50)[::-1]))
    assert spec.encode_items(shuffled).id_code.tolist() == codes[::-1].tolist()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: v.update(surfces=[]), "did you mean 'surfaces'"),
        (lambda v: v["items"]["columns"][0].update(knd="numeric"), "did you mean 'kind'"),
        (lambda v: v["items"]["columns"][0].update(kind="number"), "kind"),
        (lambda v: v.update(history_events=["clik"]), "did you mean 'click'"),
        (lambda v: v.update(history_length=-1), "negative"),
        (lambda v: v["items"]["columns"][2].update(std=0), "positive std"),
        (lambda v: v["items"]["columns"].append(v["items"]["columns"][0]), "twice"),
        (lambda v: v.update(schema_version=9), "version 1"),
        (lambda v: v["items"]["columns"][0].update(size=0), "expected codes up to 0"),
    ],
)
def test_a_wrong_edit_is_refused_by_name(edit, message, tmp_path):
    inferred(items_table(6)).save(tmp_path)
    path = tmp_path / SPEC_FILE
    values = yaml.safe_load(path.read_text())
    edit(values)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(UserError, match=message) as refused:
        FeatureSpec.load(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_spec_never_runs_code(tmp_path):
    inferred(items_table(6)).save(tmp_path)
    (tmp_path / SPEC_FILE).write_text("items: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(UserError, match="expected a feature spec"):
        FeatureSpec.load(tmp_path)


def test_a_column_of_the_wrong_type_is_refused_by_name():
    spec = inferred(items_table(6))
    with pytest.raises(UserError, match=r"items\.price"):
        spec.encode_items(items_table(2, price=["cheap", "dear"]))


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("numeric", ["red", "blue"], "numbers"),
        ("numeric", [[1.0], [2.0]], "numbers"),
        ("categorical", [[1.0], [2.0]], "text or integers"),
        ("embedding", ["red", "blue"], "lists of numbers"),
        ("embedding", [1.5, 2.5], "lists of numbers"),
    ],
)
def test_an_edited_spec_with_the_wrong_kind_is_refused_by_column(kind, values, expected):
    """Oracle: the line, which names the column, what its kind needs, and what to correct."""
    items = items_table(2, colour=values)
    template = FeatureSpec(items=EntitySpec(columns=(Column(name="colour", kind=kind),)))
    message = rf"expected {expected} in column items\.colour, found: .*: correct kind '{kind}' in the feature spec"
    with pytest.raises(UserError, match=message) as refused:
        inferred(items, template=template)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("values", [[["red"], ["blue"]], [[[1.0]], [[2.0]]]])
def test_lists_of_anything_but_numbers_are_refused_by_column(values):
    template = FeatureSpec(items=EntitySpec(columns=(Column(name="tags", kind="embedding"),)))
    items = items_table(2, tags=values)
    with pytest.raises(UserError, match=r"expected vectors in column items\.tags, found: "):
        inferred(items, template=template).encode_items(items)


@pytest.mark.parametrize("marker", [1.7976931348623157e308, -1.7976931348623157e308, 3.4028234663852886e38])
def test_a_number_that_float32_cannot_hold_is_missing_in_training_and_serving(marker):
    """Oracle: the same table with null in its place."""
    odd, null = (items_table(4, price=[1.0, 3.0, value, 2.0]) for value in (marker, None))
    spec = inferred(null)
    assert inferred(odd).items == spec.items
    encoded = spec.encode_items(odd).numeric
    np.testing.assert_array_equal(encoded, spec.encode_items(null).numeric)
    assert encoded[2].tolist() == [0, 1]


def test_a_number_that_its_normalisation_takes_out_of_float32_is_missing():
    items = items_table(3, price=[0.0, 1e-6, 1e36])
    assert inferred(items, seen=[True, True, False]).encode_items(items).numeric[2].tolist() == [0, 1]


@pytest.mark.parametrize("value", [1e30, -1e30, 1.5e6])
def test_a_vector_too_large_to_compute_with_is_refused_by_column(value):
    items = items_table(2, visual=[[1.0, 2.0], [1.0, value]])
    with pytest.raises(UserError, match=r"up to 1e\+06 in the vectors of items\.visual, found -?1.*e\+[03][06]: scale"):
        inferred(items).encode_items(items)


def test_a_vector_of_the_wrong_length_is_refused():
    spec = inferred(items_table(2, visual=[[1.0, 2.0]] * 2))
    with pytest.raises(UserError, match=r"length 2 in items\.visual, found one of length 3"):
        spec.encode_items(items_table(2, visual=[[1.0, 2.0, 3.0]] * 2))


def test_an_embedding_that_only_new_items_have_is_kept_as_it_is():
    """Oracle: the vectors of the table themselves, zeros where there is none."""
    items = items_table(3, visual=pa.array([None, None, [3.0, 4.0]], pa.list_(pa.float32())))
    spec = inferred(items, seen=[True, True, False])
    assert spec.items.embedding_dims == {"visual": 2}
    assert spec.encode_items(items).embeddings["visual"].tolist() == [[0, 0], [0, 0], [3, 4]]


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.null()])
def test_an_embedding_column_without_any_vector_is_left_out(kind):
    """Oracle: the spec of the same table without that column."""
    items, without = items_table(3, visual=pa.nulls(3, kind)), inferred(items_table(3))
    named = EntitySpec(columns=(*without.items.columns, Column(name="visual", kind="embedding")))
    for spec in (inferred(items), inferred(items, template=dataclasses.replace(without, items=named))):
        assert spec.items == without.items


def test_an_edited_spec_decides_columns_and_transforms(tmp_path):
    rows = random_rows(1, count=200)
    template = FeatureSpec(
        items=EntitySpec(columns=(Column(name="price", kind="numeric", transform="log1p"),)),
        history_length=3,
        history_events=("click",),
    )
    template.save(tmp_path)
    config = short_config(features={"spec_path": str(tmp_path)})
    world = build_world(tmp_path / "world", rows, config=config)
    spec = world.dataset.spec
    assert [column.name for column in spec.items.columns] == ["price"]
    assert spec.items.columns[0].mean == pytest.approx(np.log1p(np.arange(10, 16)).mean())
    assert set(world.dataset.events.action.tolist()) == {2}
    split = world.dataset.split("train")
    assert world.dataset.query_arrays(split, np.arange(2)).history_item.shape == (2, 3)


def test_an_edited_spec_keeps_the_statistics_that_it_names_and_no_others(tmp_path):
    """Oracle: the columns themselves, with and without the edit; a list that was emptied leaves all of them out."""
    rows = random_rows(1, count=200)
    whole = build_world(tmp_path / "whole", rows).dataset
    second = whole.spec.item_performance[1]
    FeatureSpec(item_performance=(dataclasses.replace(second, mean=99.0),)).save(tmp_path)
    data = build_world(tmp_path / "world", rows, config=short_config(features={"spec_path": str(tmp_path)})).dataset
    assert (data.spec.user_aggregates, data.spec.item_performance) == ((), (second,))
    assert data.performance(1).tolist() == whole.performance(1)[:, 1:2].tolist()
    assert data.query_arrays(data.split("train"), np.arange(2)).user_aggregates.shape == (2, 0)


def test_a_template_column_that_the_table_lacks_is_refused(tmp_path):
    FeatureSpec(items=EntitySpec(columns=(Column(name="colour", kind="categorical"),))).save(tmp_path)
    config = short_config(features={"spec_path": str(tmp_path)})
    with pytest.raises(UserError, match="'colour'"):
        build_world(tmp_path / "world", random_rows(1), config=config)


def test_another_runs_spec_encodes_by_name(tmp_path):
    """The champion knew fewer items, two surfaces in another order, fewer aggregates, and only click histories."""
    world = build_world(tmp_path, random_rows(2, count=300))
    own, data = world.dataset.spec, world.dataset
    ids = own.vocabularies["item_id"]
    champion = dataclasses.replace(
        own,
        surfaces=("search", "home_feed"),
        user_aggregates=(Statistic(name="gone", mean=2.0, std=2.0), Statistic(name="click_count_5d", mean=1.0)),
        item_performance=own.item_performance[1:2],
        history_events=("click",),
        vocabularies={**own.vocabularies, "item_id": dataclasses.replace(ids, codes=ids.codes[::-1])},
    )
    seen = FeatureDataset.open(world.features_dir, champion)
    split, theirs = data.split("train"), seen.split("train")
    rows = np.arange(len(split))
    arrays, other = data.query_arrays(split, rows, 6), seen.query_arrays(theirs, rows, 6)
    names = [None, *own.surfaces], [None, *champion.surfaces]
    for mine, found in zip(arrays.surface, other.surface, strict=True):
        expected = names[0][mine] if names[0][mine] in champion.surfaces else None
        assert names[1][found] == expected
    column = data.metadata["user_aggregates"].index("click_count_5d")
    np.testing.assert_array_equal(other.user_aggregates[:, 0], -1)
    np.testing.assert_allclose(other.user_aggregates[:, 1], split.user_aggregates[:, column] - 1)
    np.testing.assert_allclose(seen.performance(3)[:, 0], data.performance(3)[:, 1])
    assert seen.items.id_code.tolist() == data.items.id_code[::-1].tolist()
    for q in rows:
        everything = data.query_arrays(split, rows[q : q + 1], 1000)
        clicks = everything.history_item[0][everything.history_action[0] == 2][-6:]
        np.testing.assert_array_equal(other.history_item[q][other.history_action[q] > 0], clicks)


def test_decayed_counts_are_normalised_near_to_their_logarithm(tmp_path):
    data = build_world(tmp_path, random_rows(3)).dataset
    names = data.metadata["item_performance"]
    column = names.index("checkout_decayed_30d")
    statistic = data.spec.item_performance[column]
    stored = data.stored_performance
    last = slice(stored.offsets[-2], stored.offsets[-1])
    expected = (np.log1p(100 * stored.values[last, column]) - statistic.mean) / statistic.std
    newest = data.performance(data.num_snapshots - 1)[stored.items[last], column]
    np.testing.assert_allclose(newest, expected, rtol=1e-4)
    inside = stored.times <= parse_time(data.metadata["windows"]["train"]["end"])
    inside &= stored.times > parse_time(data.metadata["windows"]["train"]["start"])
    training = np.concatenate([data.performance(s)[:, column] for s in np.flatnonzero(inside)])
    assert training.mean() == pytest.approx(0, abs=1e-5)
    assert training.std() == pytest.approx(1, abs=1e-5)


def test_performance_rows_equal_the_dense_table(tmp_path):
    rows = [*random_rows(3, items=4), event("u0", "i0", "click", 1)]
    data = build_world(tmp_path, rows).dataset
    fresh = FeatureDataset.open(data.directory, data.spec)
    for snapshot in (-1, 0, 4, data.num_snapshots - 1, 1, 2, 3, 0, 0, 4):  # more than are remembered
        dense = dataclasses.replace(fresh).performance(snapshot)  # a copy remembers nothing
        items = np.array([3, 0, 5, 2, 5])
        np.testing.assert_array_equal(data.performance_rows(items, snapshot), dense[items])
        unseen = data.performance_rows(np.array([-1]), snapshot)
        np.testing.assert_array_equal(unseen, data.performance(-1)[:1])


def test_coverage_compares_training_rows_with_all_that_are_served(tmp_path):
    items = items_table(4, category=["a", None, "new", "new"], price=[1.0, 2.0, 3.0, None])
    rows = [event("u0", "i0", "click", 1), event("u0", "i1", "click", 2), event("u0", "i2", "click", 25)]
    covered = build_world(tmp_path, rows, items=items).dataset.metadata["coverage"]["items"]
    assert covered["train"] == {"advertiser_id": 0.0, "category": 0.5, "price": 0.0}
    assert covered["serve"] == {"advertiser_id": 0.25, "category": 0.75, "price": 0.25}


def test_coverage_of_queries_compares_training_with_the_newest(tmp_path):
    context = {"context_item_id": "i1", "context_embedding": [1.0, 0.0]}
    rows = [
        event("u0", "i0", "click", 1, surface="search", **context),
        event("u0", "i1", "click", 2, surface="search"),
        event("u1", "i0", "click", 3, surface=None),
        event("u1", "i0", "click", 25, surface="new_in_test", context_item_id="i0"),
        event("u2", "i2", "click", 27, surface="search"),
    ]
    data = build_world(tmp_path, rows).dataset
    covered = data.metadata["coverage"]["queries"]
    third, half = pytest.approx(1 / 3), 0.5
    assert covered["train"] == {"surface": third, "context_item": pytest.approx(2 / 3), **rest(2 / 3, 2 / 3)}
    assert covered["serve"] == {"surface": half, "context_item": half, **rest(1.0, half)}
    for role, name in (("train", "train"), ("serve", "test")):
        split = data.split(name)
        assert query_missing_shares(data.query_arrays(split, np.arange(len(split)))) == pytest.approx(covered[role])


@pytest.mark.parametrize(
    "features", [{"history_events": ["checkout"]}, {"history_events": ["impression"]}, {"history_length": 0}]
)
def test_coverage_of_queries_counts_what_the_model_sees_of_them(tmp_path, features):
    """Oracle: the arrays that the model is given. Of vectors none was seen in training, or all are zeros."""
    rows = [event("u0", f"i{n}", kind, 1 + n) for n, kind in enumerate(("impression", "click", "checkout", "click"))]
    rows += [event("u1", "i0", "click", 2), event("u1", "i1", "save", 3), event("u0", "i3", "click", 26)]
    for vector in ([1.0, 0.0], [0.0, 0.0]):
        late = event("u1", "i4", "click", 27, surface="search", context_embedding=vector)
        early = event("u1", "i4", "save", 1, surface="search", context_embedding=None if vector[0] else vector)
        data = build_world(
            tmp_path / str(vector[0]), [*rows, early, late], config=short_config(features=features)
        ).dataset
        for role, name in (("train", "train"), ("serve", "test")):
            split = data.split(name)
            expected = query_missing_shares(data.query_arrays(split, np.arange(len(split))))
            assert data.metadata["coverage"]["queries"][role] == pytest.approx(expected)


def rest(context_embedding, history):
    return {"context_embedding": pytest.approx(context_embedding), "history": pytest.approx(history)}
