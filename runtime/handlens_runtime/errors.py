"""Everything this package raises towards its user.

HandLensError                 base: one sentence, what was found, what was expected, what to do
├── BundleError               a bundle cannot be used: damaged, incomplete, too new
├── ImageError                an image cannot be read or is refused
├── PromptError               messages that cannot be turned into a prompt, or do not fit the context
├── OptionError               an option that the bundle, backend or sampler does not have
├── EvaluationError           an evaluation set or text that cannot be read, asked or compared
├── BackendError              a backend is not installed or failed while running
└── BusyError                 an engine is asked for a second answer before the first one ended

The exporter's errors (`handlens_export.errors`) share the base, so a caller needs one `except`.
"""


class HandLensError(Exception):
    """Base of all errors a user can mend; `str()` is one sentence."""


class BundleError(HandLensError):
    """A bundle cannot be used; the sentence names the file."""


class ImageError(HandLensError):
    """An image cannot be read or is refused; the sentence names the file."""


class PromptError(HandLensError):
    """Messages cannot be turned into a prompt, or the prompt does not fit."""


class OptionError(HandLensError):
    """An option has a value that cannot be honoured."""


class EvaluationError(HandLensError):
    """An evaluation set or text cannot be read, asked or compared; the sentence names file and line."""


class BackendError(HandLensError):
    """A backend is not installed, or failed while running."""


class BusyError(HandLensError):
    """An engine is asked for a second answer before the first one ended."""
