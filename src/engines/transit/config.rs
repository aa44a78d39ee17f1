//! `config/keys` and `cache-config`.

use serde::{Serialize, de::DeserializeOwned};

use super::{
    Transit,
    record::{CacheConfig, KeysConfig, decode, encode},
};
use crate::{
    barrier::Txn,
    core::{engine::Call, failure::Failure, reply::Reply},
    params,
    wire::field::NoParams,
};

/// Where `config/keys` is stored.
pub const KEYS: &str = "config/keys";
const CACHE: &str = "config/cache";

params! {
    /// Parameters of `config/keys`.
    pub struct KeysParams {
        /// Whether encrypting makes no keys; absent means false.
        pub disable_upsert: bool,
    }
}

params! {
    /// Parameters of `cache-config`.
    pub struct CacheParams {
        /// Keys held in memory: 0 leaves it to the server, otherwise at least 10.
        pub size: i64,
    }
}

impl Transit {
    /// A setting of the mount, or its default.
    pub fn setting<T: DeserializeOwned + Default>(&self, path: &str) -> Result<T, Failure> {
        match self.store.view.get(path)? {
            Some(entry) => decode(&entry.value),
            None => Ok(T::default()),
        }
    }

    async fn set(&self, path: &str, value: &(impl Serialize + Sync)) -> Result<(), Failure> {
        self.commit_mounted(|| Ok(Txn::new().put_secret(path, encode(value)?))).await?;
        Ok(())
    }
}

/// GET `config/keys`.
pub async fn read_keys(engine: &Transit, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    Reply::data(&engine.setting::<KeysConfig>(KEYS)?)
}

/// POST `config/keys`.
pub async fn write_keys(engine: &Transit, _: &Call<'_>, params: KeysParams) -> Result<Reply, Failure> {
    let config = KeysConfig { disable_upsert: params.disable_upsert };
    engine.set(KEYS, &config).await?;
    Reply::data(&config)
}

/// GET `cache-config`.
pub async fn read_cache(engine: &Transit, _: &Call<'_>, _: NoParams) -> Result<Reply, Failure> {
    Reply::data(&engine.setting::<CacheConfig>(CACHE)?)
}

/// POST `cache-config`. The size is kept and shown; the server's own bound holds in any case.
pub async fn write_cache(engine: &Transit, _: &Call<'_>, params: CacheParams) -> Result<Reply, Failure> {
    if params.size != 0 && params.size < 10 {
        return Err(Failure::invalid("size must be 0 or a value greater or equal to 10"));
    }
    let config = CacheConfig { size: params.size };
    engine.set(CACHE, &config).await?;
    Reply::data(&config)
}
