def fit_limit(steps, differences, least_spacing=0):
    return "not there yet"
