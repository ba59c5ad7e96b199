"""Lets ``python -m latent_obs`` do what the program ``latent-obs`` does."""

import sys

from latent_obs.cli import main

sys.exit(main())
