"""What only the notebooks and the command line need: sizes, figures, sliders, and the runner."""
