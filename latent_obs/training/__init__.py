"""Training a VAE offline on a frames folder.

:mod:`~latent_obs.training.objective` is what is minimised, :mod:`~latent_obs.training.run` takes the steps,
and :mod:`~latent_obs.training.train` begins and ends a run.
"""
