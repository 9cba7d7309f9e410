"""What deliveries were decided by lot, and whether the users came back: what is learned from is what was decided by.

One row a user and delivery, the first decision, from the view `delivery_trials` once the week after it is over; with the
features that the alert itself carried, so that nothing is known here that was not known then.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from clickhouse_connect.driver.exceptions import ClickHouseError

from stream.adapters.database.clickhouse import ClickHouseMissing, connect, missing
from stream.core.user.featurize import ALERT_FEATURES, Float32
from stream.settings import Settings
from training.evaluation.metrics import FloatArray


class Trials(NamedTuple):
    """Users of one delivery whom the lot could have put on either side."""

    features: Float32  # (N, F) in the order of ALERT_FEATURES
    told: npt.NDArray[np.bool_]  # (N,)
    returned: FloatArray  # (N,) 1 within 7 days of the decision, else 0
    propensity: FloatArray  # (N,) P(told), between 0 and 1
    risk: FloatArray  # (N,) the alert's probability of no return


SQL = """
    SELECT delivery, features, told, returned, assumeNotNull(t.propensity), probability
    FROM delivery_trials AS t
    JOIN churn_alerts_served AS a ON a.tenant = t.tenant AND a.alert_id = t.about_id
    WHERE t.tenant = {tenant:String} AND closed AND t.propensity > 0 AND t.propensity < 1
        AND length(features) = {features:UInt32}
    ORDER BY delivery, t.decided_at, delivery_id"""


def read(settings: Settings, tenant: str) -> dict[str, Trials]:
    """Delivery → its trials so far. Raises ClickHouseMissing when no server answers, or it refuses."""
    client = connect(settings.clickhouse, wait_s=10.0)
    try:
        rows = client.query(SQL, parameters={"tenant": tenant, "features": len(ALERT_FEATURES)}).result_rows
    except ClickHouseError as error:
        raise ClickHouseMissing(missing(settings.clickhouse, error)) from error
    finally:
        client.close()
    by_delivery: dict[str, list[Any]] = {}
    for row in rows:
        by_delivery.setdefault(row[0], []).append(row[1:])
    return {name: _trials(some) for name, some in by_delivery.items()}


def _trials(rows: list[Any]) -> Trials:
    features, told, returned, propensity, risk = zip(*rows, strict=True)
    return Trials(np.array(features, dtype=np.float32), np.array(told, dtype=np.bool_),
                  *(np.array(one, dtype=np.float64) for one in (returned, propensity, risk)))  # fmt: skip
