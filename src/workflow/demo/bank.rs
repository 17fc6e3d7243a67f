//! A small bank: what its server is made to do, and what is known of its books.
//!
//! Every transaction adds payments and moves the balances with them, so books that come from two different moments
//! do not balance.

use super::error::DemoError;
use super::scene::Evidence;
use super::sql::Sql;

/// Accounts of the bank.
const ACCOUNTS: u64 = 1_000;
/// Payments in one transaction.
const AT_ONCE: u64 = 250;

const OPEN: &str = "
    create table accounts (id bigint primary key, owner text not null, balance numeric(14, 2) not null);
    create table payments (id bigint primary key, payer bigint not null, payee bigint not null,
        amount numeric(12, 2) not null, paid_at timestamptz not null default clock_timestamp(), reference text not null);
    insert into accounts select id, 'customer ' || id, 5000.00 from generate_series(1, 1000) as ids (id);";

const PAY: &str = "
    with paid as (
        insert into payments (id, payer, payee, amount, reference)
        select id, 1 + id * 7919 % 1000, 1 + id * 104729 % 1000, (id * 48271 % 100000) / 100.0,
            md5(id::text) || md5((-id)::text)
        from generate_series($1::bigint, $2::bigint) as ids (id)
        returning payer, payee, amount
    ), moved as (
        select account, sum(amount) as amount
        from (select payer, -amount from paid union all select payee, amount from paid) as sides (account, amount)
        group by account
    )
    update accounts set balance = balance + moved.amount from moved where accounts.id = moved.account";

const EVIDENCE: &str = "select count(*), coalesce(sum(amount), 0)::text, \
    coalesce(md5(string_agg(payment::text, ',' order by id)), '') from payments as payment";

const BOOKS: &str = "
    select count(*), count(*) filter (where balance = 5000.00 + coalesce(amount, 0))
    from accounts left join (
        select account, sum(amount)
        from (select payer, -amount from payments union all select payee, amount from payments) as sides (account, amount)
        group by account
    ) as moved (account, amount) on moved.account = accounts.id";

/// Opens the accounts.
pub(super) fn open(sql: &Sql<'_>) -> Result<(), DemoError> {
    sql.batch("open the accounts", OPEN)
}

/// Makes payments with the numbers after `last`, in transactions of some hundred.
pub(super) fn pay(sql: &Sql<'_>, last: u64, payments: u64) -> Result<(), DemoError> {
    let until = last + payments;
    let mut next = last + 1;
    while next <= until {
        let end = until.min(next + AT_ONCE - 1);
        sql.execute("make payments", PAY, &[&(next as i64), &(end as i64)])?;
        next = end + 1;
    }
    Ok(())
}

/// Takes down what the payments are.
pub(super) fn evidence(sql: &Sql<'_>) -> Result<Evidence, DemoError> {
    let answer = sql.row("count the payments", EVIDENCE)?;
    Ok(Evidence { payments: answer.get::<i64>(0)? as u64, total: answer.get(1)?, digest: answer.get(2)? })
}

/// Proves that the payments are those of `expected`, row by row.
pub(super) fn prove_rows(sql: &Sql<'_>, what: &'static str, expected: &Evidence) -> Result<(), DemoError> {
    let found = evidence(sql)?;
    let words = |evidence: &Evidence| {
        format!("{} payments, {} in all, digest {}", evidence.payments, evidence.total, evidence.digest)
    };
    match found == *expected {
        true => Ok(()),
        false => Err(DemoError::Disproved { what, expected: words(expected), found: words(&found) }),
    }
}

/// Proves that each balance is what its payments make it; returns how many there are.
pub(super) fn prove_books(sql: &Sql<'_>) -> Result<u64, DemoError> {
    const WHAT: &str = "balances that agree with the payments";
    let answer = sql.row(WHAT, BOOKS)?;
    let (accounts, right) = (answer.get::<i64>(0)? as u64, answer.get::<i64>(1)? as u64);
    match accounts == ACCOUNTS && right == ACCOUNTS {
        true => Ok(accounts),
        false => Err(DemoError::Disproved {
            what: WHAT,
            expected: format!("{ACCOUNTS} of {ACCOUNTS}"),
            found: format!("{right} of {accounts}"),
        }),
    }
}
