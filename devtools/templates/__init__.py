"""The graphs of the example workflows and blueprints, by job; `devtools/build_examples.py` writes their files."""
