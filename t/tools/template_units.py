"""Small templates for make_template_goldens.py, one construct each."""

CASES = [("a{{ x }}b", {"x": 1})]
