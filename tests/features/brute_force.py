"""The contract of ``build_features`` written the slow, obvious way: loops over rows that say what may be seen."""

import math

from conversion_retrieval.schema import CONVERSIONS, ENGAGEMENTS, EVENT_TYPES

DAY = 86_400_000_000
MINUTE = 60_000_000


def as_events(table):
    """Event rows with integer times, sorted by user, time and event id."""
    events = []
    for row in table.to_pylist():
        time = int(row["event_time"].timestamp() * 1_000_000 + 0.5)
        reported = row["reported_time"]
        known = time if reported is None else max(time, int(reported.timestamp() * 1_000_000 + 0.5))
        vector = row["context_embedding"]
        events.append({**row, "time": time, "known": known, "vector": tuple(vector) if vector else None})
    return sorted(events, key=lambda e: (e["user_id"], e["time"], e["event_id"]))


def request_of(events, event, session_minutes):
    """The impression that led to a click or save, else the event itself."""
    if event["event_type"] not in ENGAGEMENTS:
        return event
    led = [
        e
        for e in events
        if e["event_type"] == "impression"
        and (e["user_id"], e["item_id"], e["surface"]) == (event["user_id"], event["item_id"], event["surface"])
        and 0 <= event["time"] - e["time"] <= session_minutes * MINUTE
    ]
    return max(led, key=lambda e: (e["time"], e["event_id"])) if led else event


def touch_of(events, conversion, advertiser, labels):
    """The last click inside its window, else the last impression, strictly before the conversion."""

    def same(e):
        if labels.attribution_level == "item":
            return e["item_id"] == conversion["item_id"]
        return advertiser[e["item_id"]] == advertiser[conversion["item_id"]]

    for kind, days in (("click", labels.click_window_days), ("impression", labels.view_window_days)):
        touches = [
            e
            for e in events
            if e["event_type"] == kind
            and e["user_id"] == conversion["user_id"]
            and same(e)
            and 0 < conversion["time"] - e["time"] <= days * DAY
        ]
        if touches:
            return max(touches, key=lambda e: (e["time"], e["event_id"]))
    return None


def labelled(events, advertiser, labels):
    """(event, request key, attributed) of every engagement and conversion."""
    found = []
    for event in events:
        origin = event
        if event["event_type"] in CONVERSIONS:
            origin = touch_of(events, event, advertiser, labels)
        elif event["event_type"] not in ENGAGEMENTS:
            continue
        if origin is None:
            if labels.keep_unattributed:
                found.append((event, (event["time"], None, None, None), False))
            continue
        request = request_of(events, origin, labels.session_minutes)
        key = (request["time"], request["surface"], request["context_item_id"], request["vector"])
        found.append((event, key, True))
    return found


def weight_of(event, labels, cap):
    """Event weight times the click-duration weight."""
    weight = labels.event_weights[event["event_type"]]
    if event["event_type"] != "click" or not labels.click_duration_weighting:
        return weight
    seconds = event["click_duration_seconds"]
    if seconds is None:
        return weight * labels.missing_click_duration_weight
    return weight * math.log1p(min(seconds, cap) / cap) / math.log(2)


def request_positives(events, advertiser, labels, window, known_at):
    """Sorted (user, request key, item, event type, attributed) of a split in request mode."""
    return [
        (event, key, attributed)
        for event, key, attributed in labelled(events, advertiser, labels)
        if window[0] <= key[0] < window[1] and event["known"] < known_at
    ]


def recent_positives(events, advertiser, labels, train, recent):
    """The same for what is learned last: of every query since the training window began to which a label was reported
    since it ended, all labels known by the end of ``recent``."""
    known = request_positives(events, advertiser, labels, (train[0], recent[1]), recent[1])
    reported_since = {(event["user_id"], *key) for event, key, _ in known if event["known"] >= train[1]}
    return [(event, key, a) for event, key, a in known if (event["user_id"], *key) in reported_since]


def window_positives(events, advertiser, labels, anchors, width, known_at, history_events):
    """The same for queries at anchors: what each user did in the following span, if the user had a history by then."""
    found = []
    for event, _, attributed in labelled(events, advertiser, labels):
        for anchor in anchors:
            inside = anchor <= event["time"] < anchor + width and event["known"] < known_at
            if inside and history(events, event["user_id"], anchor, history_events):
                found.append((event, (anchor, None, None, None), attributed))
    return found


def history(events, user, time, kinds):
    """A user's events of some kinds that were known strictly before a time, in the order they became known."""
    known = [e for e in events if e["user_id"] == user and e["known"] < time and e["event_type"] in kinds]
    return sorted(known, key=lambda e: (e["known"], e["time"], e["event_id"]))


def aggregates(events, user, time, advertiser, windows_days):
    """User aggregates by name."""
    known = [e for e in events if e["user_id"] == user and e["known"] < time]
    result = {}
    for kind in EVENT_TYPES:
        times = [e["known"] for e in known if e["event_type"] == kind]
        for days in windows_days:
            result[f"{kind}_count_{days:g}d"] = sum(t >= time - days * DAY for t in times)
        result[f"{kind}_count_total"] = len(times)
        result[f"{kind}_recency"] = 1 / (1 + (time - max(times)) / DAY) if times else 0.0
    result["distinct_items"] = len({e["item_id"] for e in known})
    result["distinct_advertisers"] = len({advertiser[e["item_id"]] for e in known})
    return result


def performance_counts(events, item, time, kind, days):
    """Events of a kind on an item that became known in the days strictly before a time."""
    return sum(
        e["item_id"] == item and e["event_type"] == kind and time - days * DAY <= e["known"] < time for e in events
    )


def performance(events, item, time, names, days_of_half_life, priors, strength):
    """Decayed counts, ages and rates of an item by name, from what was known strictly before a time.

    Ages are those of the middle of the calendar day, as they are where all edges of bins are midnights.
    """
    known = [e for e in events if e["item_id"] == item and e["known"] < time]
    firsts = {}
    for e in sorted((e for e in known if e["event_type"] in CONVERSIONS), key=lambda e: e["known"]):
        firsts.setdefault(e["user_id"], e)
    kinds = {kind: [e for e in known if e["event_type"] == kind] for kind in EVENT_TYPES}
    kinds["new_buyers"] = list(firsts.values())
    ages = {kind: [_age(e, time) for e in found] for kind, found in kinds.items()}
    conversions = [age for kind in CONVERSIONS for age in ages[kind]]
    result = {
        "item_age": max((_age(e, time) for e in known), default=0.0),
        "conversion_recency": min(conversions, default=0.0),
        "conversion_age": max(conversions, default=0.0),
    }
    for name in (n for n in names if "_decayed_" in n):
        kind, days = name.rsplit("_decayed_", 1)
        result[name] = sum(0.5 ** (age / days_of_half_life[days]) for age in ages[kind])
    counted = {kind: len(found) for kind, found in kinds.items()}
    bought = sum(counted[kind] for kind in CONVERSIONS)
    trials = {
        "click_rate": (counted["click"], counted["impression"]),
        "conversion_rate": (bought, counted["click"]),
        "checkout_rate": (counted["checkout"], counted["impression"]),
    }
    for name, prior in priors.items():
        successes, tried = trials[name]
        result[name] = math.log((successes + strength * prior) / (tried + strength) / prior)
    return result


def _age(event, time):
    return (time - (event["known"] // DAY + 0.5) * DAY) / DAY


def safe_negatives(events, window, labels):
    """(user, item) impressions that may become hard negatives, as a training run at the window's end could tell."""
    known = [e for e in events if e["known"] < window[1]]
    radius = max(labels.click_window_days, labels.view_window_days) * DAY
    found = []
    for e in known:
        closed = e["time"] + labels.view_window_days * DAY < window[1]  # the far end still counts
        if e["event_type"] != "impression" or e["time"] < window[0] or not closed:
            continue
        acted = [
            o
            for o in known
            if (o["user_id"], o["item_id"]) == (e["user_id"], e["item_id"])
            and o["event_type"] != "impression"
            and abs(o["time"] - e["time"]) <= radius
        ]
        if not acted:
            found.append(e)
    return found


def nearest_query(queries, impression):
    """Row of the user's query at the same time and surface, of several that with its context, else the latest before,
    else the earliest after.

    ``queries`` are (row, user, time, surface, context item, context embedding), sorted by row.
    """
    own = [q for q in queries if q[1] == impression["user_id"]]
    exact = [q for q in own if q[2] == impression["time"] and q[3] == impression["surface"]]
    before = [q for q in own if q[2] <= impression["time"]]
    after = [q for q in own if q[2] > impression["time"]]
    same = [q for q in exact if q[4:] == (impression["context_item_id"], impression["vector"])]
    chosen = same or exact[:1] or before[-1:] or after[:1]
    return chosen[0][0] if chosen else None
