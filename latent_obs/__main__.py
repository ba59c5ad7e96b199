"""``python -m latent_obs`` is ``latent-obs``."""

import sys

from latent_obs.cli import main

sys.exit(main())
