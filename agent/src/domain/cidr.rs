//! Ranges of addresses, as catalogues and the configuration write them.

use std::net::IpAddr;

use ipnet::IpNet;

/// Why a text is no range of addresses. Each names the text and ends with the next step.
#[derive(Debug, thiserror::Error)]
pub enum CidrError {
    /// It is nothing of the kind.
    #[error("`{0}` is neither an address nor a range of addresses; write `10.0.0.0/8`, `fc00::/7` or `192.0.2.1`")]
    Unreadable(String),
    /// It names one address and a length.
    #[error("`{given}` has bits beyond its prefix; write `{meant}`")]
    HostBits {
        /// The text.
        given: String,
        /// The range that it lies in.
        meant: IpNet,
    },
    /// It can never be looked up.
    #[error("`{0}` is IPv4 mapped into IPv6, which is looked up as IPv4; write it as IPv4")]
    Mapped(String),
}

/// An address, or a range of addresses.
///
/// # Errors
/// [`CidrError`].
pub fn parse_cidr(text: &str) -> Result<IpNet, CidrError> {
    let parsed = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let cidr: IpNet = parsed.map_err(|_| CidrError::Unreadable(text.to_owned()))?;
    if cidr != cidr.trunc() {
        return Err(CidrError::HostBits { given: text.to_owned(), meant: cidr.trunc() });
    }
    match cidr {
        IpNet::V6(v6) if v6.prefix_len() >= 96 && v6.network().to_ipv4_mapped().is_some() => {
            Err(CidrError::Mapped(text.to_owned()))
        }
        _ => Ok(cidr),
    }
}
