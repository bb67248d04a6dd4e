"""Plan, schedule, measure, store and compare: everything both arms share."""
