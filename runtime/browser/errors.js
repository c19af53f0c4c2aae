// The errors a user of a bundle can meet; names and codes are those of optimize.runtime.errors.

export class OptimizeError extends Error {
  constructor(message, options) {
    super(message, options);
    this.name = new.target.name;
    this.code = new.target.code;
  }
}
OptimizeError.code = "optimize";

/** A folder that cannot be read as a bundle. */
export class BundleError extends OptimizeError {}
BundleError.code = "bundle";

/** A file of the bundle is not what its format says. */
export class CorruptBundle extends BundleError {}
CorruptBundle.code = "bundle.corrupt";

/** A file is missing, or its size or hash differs from the manifest. */
export class IntegrityError extends BundleError {}
IntegrityError.code = "bundle.integrity";

/** A path or content that must not be opened. */
export class UnsafeBundle extends BundleError {}
UnsafeBundle.code = "bundle.unsafe";

/** The bundle was written by an incompatible version, or needs what this runtime lacks. */
export class VersionError extends BundleError {}
VersionError.code = "bundle.version";

/** A request that the signature does not allow. */
export class RuntimeInputError extends OptimizeError {}
RuntimeInputError.code = "input";

/** Memory, network, or a feature that this browser or page lacks. */
export class ResourceError extends OptimizeError {}
ResourceError.code = "resource";
