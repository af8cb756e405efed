package migrations

const LockID = int64(lockID)
