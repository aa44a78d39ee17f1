//! stub
use crate::{
    barrier::View,
    core::route::{RouteTable, Routed},
};
use std::sync::LazyLock;
/// stub
pub struct Cubbyhole;
impl Cubbyhole {
    /// stub
    pub fn new(_v: View) -> Self {
        Self
    }
}
impl Routed for Cubbyhole {
    fn table() -> &'static RouteTable<Self> {
        static T: LazyLock<RouteTable<Cubbyhole>> = LazyLock::new(|| RouteTable::new(&[]));
        &T
    }
}
