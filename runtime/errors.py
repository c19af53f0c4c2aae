"""The errors a user of a bundle can meet, each with a stable code and a process exit code.

OptimizeError
├── BundleError               exit 5   a folder that cannot be trusted or read as a bundle
│   ├── CorruptBundle                  a file is not what its format says
│   ├── IntegrityError                 a file is not the one the manifest names
│   ├── UnsafeBundle                   a path, link or content that must not be opened
│   ├── VersionError                   written by an incompatible version
│   └── DeviceError                    needs a device or provider this machine lacks
├── RuntimeInputError         exit 2   a request the signature does not allow
└── ResourceError             exit 4   memory, disk, permission or a missing package

The compiler adds its own in `optimize.ir.errors`. Every message says what was found, what was
expected and what to do.
"""


class OptimizeError(Exception):
    """Base of every error raised on purpose; `code` is stable, `exit_code` is the CLI's."""

    code = "optimize"
    exit_code = 2


class BundleError(OptimizeError):
    """A folder that cannot be read as a bundle."""

    code = "bundle"
    exit_code = 5


class CorruptBundle(BundleError):
    """A file of the bundle is not what its format says."""

    code = "bundle.corrupt"


class IntegrityError(BundleError):
    """A file is missing, or its size or hash differs from the manifest."""

    code = "bundle.integrity"


class UnsafeBundle(BundleError):
    """A path, link, special file or content that must not be opened."""

    code = "bundle.unsafe"


class VersionError(BundleError):
    """The bundle was written by an incompatible version."""

    code = "bundle.version"


class DeviceError(BundleError):
    """The bundle or the request needs a device or provider this machine lacks."""

    code = "bundle.device"


class RuntimeInputError(OptimizeError, ValueError):
    """A request that the signature does not allow."""

    code = "input"


class ResourceError(OptimizeError):
    """Memory, disk, permission, or a package that is not installed."""

    code = "resource"
    exit_code = 4
