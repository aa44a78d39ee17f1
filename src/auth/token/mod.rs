//! stub
use crate::core::{
    Settings,
    route::{RouteTable, Routed},
    tokens::TokenStore,
};
use std::sync::{Arc, LazyLock};
/// stub
pub struct TokenAuth;
impl TokenAuth {
    /// stub
    pub fn new(_t: Arc<TokenStore>, _s: Settings) -> Self {
        Self
    }
}
impl Routed for TokenAuth {
    fn table() -> &'static RouteTable<Self> {
        static T: LazyLock<RouteTable<TokenAuth>> = LazyLock::new(|| RouteTable::new(&[]));
        &T
    }
}
