"""Do a trained teacher and its student show the random features' mechanism?"""
